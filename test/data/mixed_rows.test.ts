import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Batches } from '../../lib/data/batches.ts';
import { LabelledBatches } from '../../lib/data/labelled_batches.ts';
import { fileOf, mixRows } from '../../lib/data/mixed_rows.ts';
import { openRows } from '../../lib/data/open_rows.ts';
import { arrayRows, type Row } from '../../lib/data/rows.ts';
import { formFile, shownExample } from '../support/shown_rows.ts';
import { tinyTokenizer } from '../support/tiny_tokenizer.ts';
import { tinyWordPiece } from '../support/tiny_wordpiece.ts';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'balora-mixed-'));
});
afterAll(() => rm(folder, { recursive: true }));

const list = (name: string, count: number): Row[] =>
  Array.from({ length: count }, (_, i) => ({ prompt: `${name}${i}`, completion: 'x' }));
const source = (weights?: number[]) =>
  mixRows(
    [arrayRows(list('a', 6), 'a'), arrayRows(list('b', 2), 'b'), arrayRows(list('c', 2), 'c')],
    weights,
  );

async function epochs(data: Batches, from = 0, to = 4): Promise<string[][]> {
  const all: string[][] = [];
  for (let epoch = from; epoch < to; epoch++) {
    const shown: string[] = [];
    for await (const { indices } of data.batches(epoch)) {
      for (const index of indices as Int32Array) {
        shown.push(`${'abc'[fileOf(source(), index)]}${index}`);
      }
    }
    all.push(shown);
  }
  return all;
}

const create = (weights?: number[], options = {}) =>
  Batches.create(source(weights), tinyTokenizer(), { promptTemplate: 'none', ...options });
const countOf = (shown: readonly string[], file: string) =>
  shown.filter((name) => name.startsWith(file)).length;

describe('rows of several files', () => {
  it('come one file after the other, with the places of their own files', async () => {
    const rows = source();
    expect(rows.length).toBe(10);
    expect([(await rows.row(5)).prompt, (await rows.row(6)).prompt]).toEqual(['a5', 'b0']);
    expect([await rows.where(0), await rows.where(9)]).toEqual(['a 0', 'c 1']);
    expect(Array.from({ length: 10 }, (_, i) => fileOf(rows, i)).join('')).toBe('0000001122');
    await expect(rows.row(10)).rejects.toThrow(/the files have 10 rows, no row 10/);
  });

  it('without weights give the batches and the fingerprint of one file', async () => {
    const one = arrayRows([...list('a', 6), ...list('b', 2), ...list('c', 2)]);
    const single = await Batches.create(one, tinyTokenizer(), { promptTemplate: 'none' });
    const several = await create();
    expect(several.fingerprint).toBe(single.fingerprint);
    expect(await epochs(several)).toEqual(await epochs(single));
  });

  it('with weights have their shares of each epoch, and all rows of a file come equally often', async () => {
    const data = await create([1, 3, 1]);
    const all = await epochs(data, 0, 6);
    for (const epoch of all) {
      expect(epoch).toHaveLength(10);
      expect(['a', 'b', 'c'].map((file) => countOf(epoch, file))).toEqual([2, 6, 2]);
    }
    const counts = new Map<string, number>();
    for (const name of all.flat()) counts.set(name, (counts.get(name) ?? 0) + 1);
    expect([...counts].sort()).toEqual([
      ...['a0', 'a1', 'a2', 'a3', 'a4', 'a5'].map((name) => [name, 2]),
      ...['b6', 'b7'].map((name) => [name, 18]),
      ...['c8', 'c9'].map((name) => [name, 6]),
    ]);
    expect(all[0]).not.toEqual(all[1]);
  });

  it('are mixed as a function of seed and epoch: any epoch can be begun, at any micro-batch', async () => {
    const data = await create([1, 3, 1], { batchSize: 2 });
    const again = await create([1, 3, 1], { batchSize: 2 });
    expect(await epochs(again, 3, 4)).toEqual(await epochs(data, 3, 4));
    const indices = async (start: number) => {
      const found: number[][] = [];
      for await (const batch of again.batches(2, start)) found.push([...(batch.indices ?? [])]);
      return found;
    };
    expect(await indices(2)).toEqual((await indices(0)).slice(2));
    expect(await epochs(await create([1, 3, 1], { seed: 7 }))).not.toEqual(await epochs(data));
  });

  it('take turns in proportion to their weights without shuffling', async () => {
    const [first, second] = await epochs(await create([2, 2, 1], { shuffle: false }));
    expect(first).toEqual(['a0', 'b6', 'c8', 'a1', 'b7', 'a2', 'b6', 'c9', 'a3', 'b7']);
    expect(second?.filter((name) => name.startsWith('a'))).toEqual(['a4', 'a5', 'a0', 'a1']);
  });

  it('have weights in the fingerprint', async () => {
    const prints = await Promise.all(
      [undefined, [1, 1, 1], [1, 3, 1]].map(async (weights) => (await create(weights)).fingerprint),
    );
    expect(new Set(prints).size).toBe(3);
  });

  it('are refused with weights that do not fit, and with a file that has no example', async () => {
    expect(() => source([1, 2])).toThrow(
      'dataWeights must be one number for each file: got 2 for 3',
    );
    expect(() => source([1, 0, 1])).toThrow(/dataWeights must be numbers > 0, got 0; leave out/);
    const path = join(folder, 'a.jsonl');
    await writeFile(path, '{"prompt": "a", "completion": "b"}\n');
    await expect(openRows([path, path], { dataWeights: [1] })).rejects.toThrow(/got 1 for 2/);
    await expect(openRows([])).rejects.toThrow(/must be a path or a list of paths/);
    await expect(openRows([path, join(folder, 'none')])).rejects.toThrow(/no such file/);
    const empty = mixRows(
      [arrayRows(list('a', 2), 'a'), arrayRows([{ prompt: 'a', completion: '' }], 'b')],
      [1, 1],
    );
    await expect(Batches.create(empty, tinyTokenizer())).rejects.toThrow(
      /^b 0: no row of this file can be trained on, so that its weight in dataWeights has no meaning/,
    );
  });

  it('may have another form in each file, and are damaged by their own places', async () => {
    const files = ['messages.jsonl', 'alpaca.json', 'pairs.tsv'].map(formFile);
    const rows = await openRows(files);
    const data = await Batches.create(rows, tinyTokenizer()).catch((error: Error) => error.message);
    expect(data).toMatch(
      /alpaca\.json:\d+ \(row 2\): field 'system', 'history' would be left out by the prompt template/,
    );
    const chat = await Batches.create(rows, tinyTokenizer(), { promptTemplate: 'chat' });
    expect(chat.format).toBe(
      'messages, instruction + input -> output as messages, prompt -> completion as messages',
    );
    expect(chat.statistics.examples).toBe(8);
    expect(chat.firstRows).toEqual([0, 3, 6]);
    expect(shownExample(await chat.example(6))).toBe(
      '<start>user\nThe sky is<end>\n<start>assistant\n[ blue.<end>]\n',
    );
    await rows.close();
  });

  it('are all closed, also where one cannot be', async () => {
    let closed = 0;
    const files = ['a', 'b', 'c'].map((name) => ({
      ...arrayRows(list(name, 1), name),
      close: async () => {
        closed++;
        if (name !== 'c') throw new Error(`${name} cannot be closed`);
      },
    }));
    await expect(mixRows(files).close()).rejects.toThrow('a cannot be closed');
    expect(closed).toBe(3);
  });

  it('may have other names for labelled texts', async () => {
    const rows = mixRows([
      arrayRows([{ text: 'a', label: 0 }]),
      arrayRows([{ sentence: 'b', label: 1 }]),
    ]);
    const data = await LabelledBatches.create(rows, tinyWordPiece(['a', 'b']));
    expect(data.format).toBe('text -> label, sentence -> label');
    expect(data.statistics.perClass).toEqual([1, 1]);
  });
});
