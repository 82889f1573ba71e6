/** Links among the files that are copied from a model's folder: those that lead out of it are refused by name, whoever reads them. */
import { execFileSync } from 'node:child_process';
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { FormatError } from '../../lib/errors.ts';
import { generate } from '../../lib/generate/generate.ts';
import { COMPANIONS } from '../../lib/io/model_folder.ts';
import { AutoModelForCausalLM, copyCompanions, saveModel } from '../../lib/models/index.ts';
import { Tokenizer } from '../../lib/text/tokenizer.ts';
import { balora } from '../support/run_cli.ts';
import { writeTinyCheckpoint } from '../support/tiny_checkpoint.ts';

const kKey = '{"key": "of nobody else"}';

let folder: string;
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'balora-own-files-'));
  await writeTinyCheckpoint(join(folder, 'plain'));
  writeFileSync(join(folder, 'key'), kKey);
});
afterAll(() => rmSync(folder, { recursive: true }));

let count = 0;
let own: string;
let to: string;
beforeEach(() => {
  own = join(folder, `${++count}`, 'model');
  to = join(folder, `${count}`, 'written');
  cpSync(join(folder, 'plain'), own, { recursive: true });
});

/** Puts a link in the place of a file. */
function link(target: string, path: string): void {
  rmSync(path, { force: true });
  symlinkSync(target, path);
}

const kReaders: Record<string, () => Promise<unknown>> = {
  saveModel: async () => saveModel(await AutoModelForCausalLM.fromPretrained(own), to),
  copyCompanions: () => {
    mkdirSync(to);
    return copyCompanions(own, to);
  },
};

describe.each(Object.keys(kReaders))('%s', (reader) => {
  const read = kReaders[reader] as () => Promise<unknown>;

  it.each(COMPANIONS)('refuses a link out of the folder: %s', async (name) => {
    link('../../key', join(own, name));
    const failure = read();
    await expect(failure).rejects.toThrow(FormatError);
    await expect(failure).rejects.toThrow(
      `${join(own, name)}: is a link that leads out of the folder, to ${join(folder, 'key')}; put a copy in its place`,
    );
    expect(existsSync(to) ? readdirSync(to) : []).toEqual([]);
  });
});

describe('files that are read to be written again', () => {
  it.each([
    ...[
      'tokenizer.json',
      'tokenizer_config.json',
      'special_tokens_map.json',
      'chat_template.jinja',
    ],
  ])('are refused where they are links out of the folder: %s', async (name) => {
    link(join(folder, 'key'), join(own, name));
    const said = `${join(own, name)}: is a link that leads out of the folder`;
    await expect(Tokenizer.fromPretrained(own)).rejects.toThrow(said);
    const { code, err } = await balora([...['quantize', '--model', own, '--output', `${to}.gguf`]]);
    expect(err).toContain(said);
    expect([code, existsSync(`${to}.gguf`)]).toEqual([1, false]);
  });

  it('are refused where generate reads the end of a text from one', async () => {
    link(join(folder, 'key'), join(own, 'generation_config.json'));
    const model = await AutoModelForCausalLM.fromPretrained(own);
    await expect(generate(model, { ids: [[1]], maxNewTokens: 1 }).result).rejects.toThrow(
      `${join(own, 'generation_config.json')}: is a link that leads out of the folder`,
    );
    model.dispose();
  });

  it('are refused where they are pipes', async () => {
    rmSync(join(own, 'tokenizer.json'));
    execFileSync('mkfifo', [join(own, 'tokenizer.json')]);
    const said = `${join(own, 'tokenizer.json')}: is a pipe, not a regular file`;
    await expect(Tokenizer.fromPretrained(own)).rejects.toThrow(said);
    await expect(copyCompanions(own, to)).rejects.toThrow(said);
  });

  it('may be links within the folder, which may be one itself; a link to nothing is no file', async () => {
    renameSync(join(own, 'tokenizer.json'), join(own, 'kept.json'));
    symlinkSync('kept.json', join(own, 'tokenizer.json'));
    symlinkSync('nothing', join(own, 'vocab.json'));
    symlinkSync(own, join(own, '..', 'named'));
    mkdirSync(to);
    await copyCompanions(join(own, '..', 'named'), to);
    expect(readdirSync(to).sort()).toEqual(['tokenizer.json', 'tokenizer_config.json']);
    expect(readFileSync(join(to, 'tokenizer.json'))).toEqual(readFileSync(join(own, 'kept.json')));
  });
});

describe("a snapshot in the Hub's cache", () => {
  let repo: string;
  let snapshot: string;
  beforeEach(() => {
    repo = join(folder, `${count}`, 'models--some--model');
    snapshot = join(repo, 'snapshots', '0'.repeat(40));
    mkdirSync(join(repo, 'blobs'), { recursive: true });
    mkdirSync(snapshot, { recursive: true });
    for (const name of readdirSync(own)) {
      cpSync(join(own, name), join(repo, 'blobs', `blob of ${name}`));
      symlinkSync(`../../blobs/blob of ${name}`, join(snapshot, name));
    }
    mkdirSync(to);
  });

  /** The snapshot's tokenizer is read and copied. */
  async function expectRead(): Promise<void> {
    const tokenizer = await Tokenizer.fromPretrained(snapshot);
    expect(tokenizer.encode('ab').length).toBeGreaterThan(0);
    await copyCompanions(snapshot, to);
    expect(readFileSync(join(to, 'tokenizer.json'))).toEqual(
      readFileSync(join(own, 'tokenizer.json')),
    );
  }

  it('is read by its links to the blobs of its repository', () => expectRead());

  it('is read where its repository is a link', async () => {
    renameSync(repo, join(dirname(repo), 'far'));
    symlinkSync('far', repo);
    await expectRead();
  });

  it.each<[string, () => void]>([
    ['a file', () => link(join(folder, 'key'), join(snapshot, 'tokenizer.json'))],
    ['a blob', () => link(join(folder, 'key'), join(repo, 'blobs', 'blob of tokenizer.json'))],
    [
      "another repository's blob",
      () => {
        const other = join(dirname(repo), 'models--some--other', 'blobs');
        mkdirSync(other, { recursive: true });
        cpSync(join(folder, 'key'), join(other, 'key'));
        link('../../../models--some--other/blobs/key', join(snapshot, 'tokenizer.json'));
      },
    ],
    [
      'the folder of all blobs',
      () => {
        renameSync(join(repo, 'blobs'), join(dirname(repo), 'away'));
        symlinkSync('../away', join(repo, 'blobs'));
      },
    ],
    [
      'a ref',
      () => {
        mkdirSync(join(repo, 'refs'));
        writeFileSync(join(repo, 'refs', 'main'), '0'.repeat(40));
        link('../../refs/main', join(snapshot, 'tokenizer.json'));
      },
    ],
  ])('is refused where a link leads elsewhere: %s', async (_, change) => {
    change();
    const said = new RegExp(`${basename(snapshot)}/tokenizer.*: is a link that leads out of`);
    await expect(Tokenizer.fromPretrained(snapshot)).rejects.toThrow(said);
    await expect(copyCompanions(snapshot, to)).rejects.toThrow(said);
    expect(readdirSync(to)).toEqual([]);
  });
});
