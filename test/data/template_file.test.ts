import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Batches } from '../../lib/data/batches.ts';
import { arrayRows } from '../../lib/data/rows.ts';
import { readTemplate } from '../../lib/data/template_file.ts';
import { FormatError } from '../../lib/errors.ts';
import { shownExample } from '../support/shown_rows.ts';
import { tinyTokenizer } from '../support/tiny_tokenizer.ts';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'balora-template-'));
});
afterAll(() => rm(folder, { recursive: true }));

async function written(content: string | Uint8Array): Promise<string> {
  const path = join(folder, 'template.txt');
  await writeFile(path, content);
  return path;
}

describe('a prompt template in a file', () => {
  it('is its text without byte-order mark, carriage returns and the last line end', async () => {
    const path = await written('\ufeffQ: {prompt}\r\nA:\r\n');
    expect(await readTemplate(path)).toBe('Q: {prompt}\nA:');
    const rows = arrayRows([{ question: 'a', answer: ' b' }]);
    const data = await Batches.create(rows, tinyTokenizer(), { promptTemplate: path });
    expect(shownExample(await data.example(0))).toBe('Q: a\nA:[ b<end>]');
  });

  it('is not looked for where the option is a name or a template', async () => {
    for (const given of ['chat', 'alpaca', 'none', '{prompt}', '']) {
      expect(await readTemplate(given)).toBe(given);
    }
  });

  it('is refused where it is missing, names no field or is not UTF-8', async () => {
    await expect(readTemplate('alpacca')).rejects.toThrow(
      'promptTemplate must be one of the names chat, alpaca, none, a text with a {field}, or a file, got "alpacca"',
    );
    await expect(readTemplate(await written('Answer!'))).rejects.toThrow(
      /template\.txt: the prompt template names no \{field\}; write one, such as \{prompt\}/,
    );
    const latin = await written(Uint8Array.of(0x7b, 0xe9, 0x7d));
    await expect(readTemplate(latin)).rejects.toThrow(FormatError);
    await expect(readTemplate(folder)).rejects.toThrow(/is a folder, not a regular file/);
  });
});
