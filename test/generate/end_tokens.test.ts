import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { FormatError } from '../../lib/errors.ts';
import { endTokens } from '../../lib/generate/end_tokens.ts';
import type { Model } from '../../lib/models/index.ts';
import { Tokenizer } from '../../lib/text/tokenizer.ts';
import { tinyTokenizer, tinyTokenizerJson } from '../support/tiny_tokenizer.ts';

const folders: string[] = [];
afterAll(() => {
  for (const folder of folders) rmSync(folder, { recursive: true, force: true });
});

/** A model as far as its end tokens are concerned. */
function modelWith(config: object, generation?: string): Model {
  const folder = mkdtempSync(join(tmpdir(), 'balora-ends-'));
  folders.push(folder);
  if (generation !== undefined) writeFileSync(join(folder, 'generation_config.json'), generation);
  return { folder, configJson: () => config } as unknown as Model;
}

const tokenizer = tinyTokenizer();
const own = tokenizer.eosId as number;

describe('endTokens', () => {
  it.each<[string, object, string | undefined, number[]]>([
    [
      'generation_config.json alone',
      { eos_token_id: 5 },
      '{"eos_token_id": [7, 8], "temperature": 0.1}',
      [7, 8],
    ],
    ['an id instead of a list', { eos_token_id: 5 }, '{"eos_token_id": 7}', [7]],
    ['no key in it', { eos_token_id: 5 }, '{"temperature": 0.1}', [5, own]],
    ['null in it', { eos_token_id: [5, own] }, '{"eos_token_id": null}', [5, own]],
    ['no file', { eos_token_id: 5 }, undefined, [5, own]],
    ['the tokenizer alone', {}, undefined, [own]],
  ])('come from %s', async (_, config, generation, expected) => {
    expect(await endTokens(modelWith(config, generation), tokenizer)).toEqual(expected);
  });

  it('may be none', async () => {
    expect(await endTokens(modelWith({}), undefined)).toEqual([]);
    expect(await endTokens(modelWith({}), Tokenizer.fromJson(tinyTokenizerJson()))).toEqual([]);
  });

  it('of a model that is one file come from its configuration', async () => {
    const folder = join(modelWith({}, '{}').folder, 'generation_config.json');
    const model = { folder, configJson: () => ({ eos_token_id: 2 }) } as unknown as Model;
    expect(await endTokens(model, undefined)).toEqual([2]);
  });

  it('of a model made in memory are not those of a file in the working directory', async () => {
    const before = process.cwd();
    process.chdir(modelWith({}, '{"eos_token_id": 1}').folder);
    try {
      const model = { folder: '', configJson: () => ({ eos_token_id: 2 }) } as unknown as Model;
      expect(await endTokens(model, undefined)).toEqual([2]);
    } finally {
      process.chdir(before);
    }
  });

  it.each(['{', '[1]', '3', '{"eos_token_id": "2"}', '{"eos_token_id": [1.5]}'])(
    'cannot come from a damaged file: %s',
    async (generation) => {
      const found = endTokens(modelWith({ eos_token_id: 1 }, generation), tokenizer);
      await expect(found).rejects.toThrow(FormatError);
      await expect(found).rejects.toThrow(
        /generation_config.json: .*; correct or delete the file, or pass eosTokenIds/,
      );
    },
  );

  it('of a model that was made in memory do not come from a file that happens to be here', async () => {
    const { folder } = modelWith({}, '{"eos_token_id": 7}');
    const here = process.cwd();
    const model = { folder: '', configJson: () => ({ eos_token_id: 5 }) } as unknown as Model;
    process.chdir(folder);
    try {
      expect(await endTokens(model, undefined)).toEqual([5]);
    } finally {
      process.chdir(here);
    }
  });

  it('are not waited for where the file is a pipe', async () => {
    const model = modelWith({ eos_token_id: 5 });
    execFileSync('mkfifo', [join(model.folder, 'generation_config.json')]);
    await expect(endTokens(model, undefined)).rejects.toThrow(/is a pipe, not a regular file/);
  });
});
