// Labelled rows to micro-batches: fields, labels of every kind, order, and errors that name file, line and field.
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { GLUE_TASKS, glueTask } from '../../lib/data/glue.ts';
import { epochGroups } from '../../lib/data/grouping.ts';
import { LabelledBatches, type LabelledOptions } from '../../lib/data/labelled_batches.ts';
import { openRows } from '../../lib/data/open_rows.ts';
import { arrayRows, type Row } from '../../lib/data/rows.ts';
import { ArgumentError } from '../../lib/errors.ts';
import { tinyWordPiece } from '../support/tiny_wordpiece.ts';

const tokenizer = tinyWordPiece(['a', 'b', 'c']);
const [a, b, c] = [5, 6, 7];
const made = (rows: Row[], options: LabelledOptions = {}) =>
  LabelledBatches.create(arrayRows(rows), tokenizer, { shuffle: false, ...options });

describe('a micro-batch', () => {
  it('has sequences one after the other, with segments, labels and places', async () => {
    const data = await made(
      [
        { sentence1: 'a', sentence2: 'b c', label: 1 },
        { sentence1: 'b', sentence2: 'a', label: 0 },
      ],
      { batchSize: 2 },
    );
    const batches = [...data.batches()];
    expect(batches).toEqual([
      {
        inputIds: Int32Array.of(2, a, 3, b, c, 3, 2, b, 3, a, 3),
        positions: Int32Array.of(0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4),
        cuSeqlens: Int32Array.of(0, 6, 11),
        tokenTypeIds: Int32Array.of(0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1),
        labels: Int32Array.of(1, 0),
        indices: Int32Array.of(0, 1),
      },
    ]);
    expect(data.format).toBe('sentence1 + sentence2 -> label');
    expect(data.statistics).toEqual({
      examples: 2,
      tokens: 11,
      longest: 6,
      truncated: 0,
      perClass: [1, 1],
    });
  });

  it('is cut to maxLength, with a warning', async () => {
    const warnings: string[] = [];
    const data = await made(
      [
        { text: 'a b c a', label: '1' },
        { text: 'a', label: '0' },
      ],
      {
        maxLength: 4,
        onWarning: ({ message }) => warnings.push(message),
      },
    );
    expect(data.statistics).toMatchObject({ longest: 4, truncated: 1 });
    expect(warnings).toEqual(['1 of 2 examples are cut to 4 tokens']);
  });
});

describe('order', () => {
  const rows = Array.from({ length: 20 }, (_, i) => ({
    text: Array(1 + ((7 * i) % 13))
      .fill('a')
      .join(' '),
    label: i % 2,
  }));
  const order = (data: LabelledBatches, epoch: number, start = 0) =>
    [...data.batches(epoch, start)].map(({ indices }) => Array.from(indices));

  it('is a function of seed and epoch, and starts anywhere', async () => {
    const options = { shuffle: true, seed: 3, batchSize: 6 };
    const [one, two] = [await made(rows, options), await made(rows, options)];
    expect(order(one, 1)).toEqual(order(two, 1));
    expect(order(one, 1)).not.toEqual(order(one, 0));
    expect(order(one, 1, 2)).toEqual(order(two, 1).slice(2));
    expect(one.batchCount()).toBe(4);
    expect(
      order(one, 5)
        .flat()
        .sort((x, y) => x - y),
    ).toEqual(rows.map((_, i) => i));
    expect((await made(rows, { ...options, seed: 4 })).fingerprint).not.toBe(one.fingerprint);
    expect(two.fingerprint).toBe(one.fingerprint);
  });

  it('groupByLength: like lengths together, every example once', async () => {
    const data = await made(rows, { shuffle: true, groupByLength: true, batchSize: 5 });
    const lengths = rows.map(({ text }) => text.split(' ').length);
    const groups = order(data, 0).map((group) => group.map((i) => lengths[i] as number));
    expect(groups.flat().sort()).toEqual([...lengths].sort());
    const ranges = groups
      .map((group) => [Math.min(...group), Math.max(...group)] as const)
      .sort((x, y) => x[0] - y[0]);
    for (let i = 1; i < ranges.length; i++) {
      expect(ranges[i]?.[0]).toBeGreaterThanOrEqual(ranges[i - 1]?.[1] as number);
    }
    const sorted = epochGroups(lengths, 0, {
      batchSize: 5,
      shuffle: false,
      seed: 0,
      byLength: true,
    });
    expect(sorted.map((group) => lengths[group[0] as number])).toEqual([13, 9, 6, 3]);
  });
});

describe('labels', () => {
  const texts = (...labels: unknown[]): Row[] => labels.map((label) => ({ text: 'a', label }));

  it('class ids are counted, class names are sorted or given', async () => {
    const ids = await made(texts(0, 2, '1'));
    expect(ids.scheme).toEqual({
      problemType: 'single_label_classification',
      numLabels: 3,
      names: null,
    });
    const names = await made(texts('neutral', 'bad', 'good'));
    expect(names.scheme.names).toEqual(['bad', 'good', 'neutral']);
    expect([...names.batches()].map(({ labels }) => labels[0])).toEqual([2, 0, 1]);
    const given = await made(texts('good', 'bad', 1), { labelNames: ['good', 'bad'] });
    expect([...given.batches()].map(({ labels }) => labels[0])).toEqual([0, 1, 1]);
  });

  it('one output is a regression', async () => {
    const data = await made(texts('2.5', -1, 0), { numLabels: 1 });
    expect(data.scheme.problemType).toBe('regression');
    expect([...data.batches()].map(({ labels }) => labels)).toEqual(
      [2.5, -1, 0].map((value) => Float32Array.of(value)),
    );
    expect(data.statistics.perClass).toBeNull();
  });

  it('a list is several labels: zeros and ones, or names', async () => {
    const flags = await made(texts([1, 0, 1], '[0, 0, 1]'), { batchSize: 2 });
    expect(flags.scheme).toMatchObject({ problemType: 'multi_label_classification', numLabels: 3 });
    expect([...flags.batches()][0]?.labels).toEqual(Float32Array.of(1, 0, 1, 0, 0, 1));
    expect(flags.statistics.perClass).toEqual([1, 0, 2]);
    const names = await made(texts(['x', 'y'], [], ['y']), { batchSize: 3 });
    expect(names.scheme).toMatchObject({ numLabels: 2, names: ['x', 'y'] });
    expect([...names.batches()][0]?.labels).toEqual(Float32Array.of(1, 1, 0, 0, 0, 1));
  });

  it('a class without examples is worth a warning', async () => {
    const warnings: string[] = [];
    await made(texts(0, 2), { onWarning: ({ message }) => warnings.push(message) });
    expect(warnings).toEqual(['no example has the label 1']);
  });
});

describe('GLUE', () => {
  it('every task has fields, labels and a metric', () => {
    expect(Object.keys(GLUE_TASKS).sort()).toEqual(
      ['cola', 'mnli', 'mrpc', 'qnli', 'qqp', 'rte', 'sst2', 'stsb', 'wnli'].sort(),
    );
    expect(glueTask('cola').metrics).toEqual(['matthews']);
    expect(() => glueTask('snli')).toThrow(/must be one of cola, sst2/);
  });

  it("takes the hub's fields and the original files'", async () => {
    const hub = await made([{ premise: 'a', hypothesis: 'b', label: 2, idx: 0 }], { glue: 'mnli' });
    const file = await made([{ sentence1: 'a', sentence2: 'b', gold_label: 'contradiction' }], {
      glue: 'mnli',
    });
    for (const data of [hub, file]) {
      expect([...data.batches()][0]?.labels).toEqual(Int32Array.of(2));
      expect(data.scheme.names).toEqual(['entailment', 'neutral', 'contradiction']);
    }
    const score = await made([{ sentence1: 'a', sentence2: 'b', score: '3.8' }], { glue: 'stsb' });
    expect(score.scheme).toEqual({ problemType: 'regression', numLabels: 1, names: null });
  });
});

describe('bad input names file, line and field', () => {
  let folder: string;
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'balora-labels-'));
  });
  afterAll(() => rm(folder, { recursive: true }));

  const fromFile = async (content: string, options: LabelledOptions, columns?: string[]) => {
    const path = join(folder, 'rows.tsv');
    await writeFile(path, content);
    const rows = await openRows(path, columns === undefined ? {} : { columns });
    return LabelledBatches.create(rows, tokenizer, options);
  };

  it.each<[string, string, LabelledOptions, RegExp]>([
    [
      'a label out of range',
      'text\tlabel\na\t0\nb\t2\n',
      { numLabels: 2 },
      /rows\.tsv:3: field 'label': "2" is not one of the ids 0\.\.1 \(numLabels 2\)/,
    ],
    [
      'a negative label',
      'text\tlabel\na\t-1\nb\t1\n',
      { numLabels: 2 },
      /rows\.tsv:2: field 'label': "-1" is not one of the ids/,
    ],
    [
      'a name that is none of the given ones',
      'text\tlabel\na\tgood\nb\tso-so\n',
      { labelNames: ['good', 'bad'] },
      /rows\.tsv:3: field 'label': "so-so" is not one of the ids 0\.\.1 .* names good, bad/,
    ],
    [
      'a number that is none',
      'text\tlabel\na\t1.5\nb\tmany\n',
      { problemType: 'regression' },
      /rows\.tsv:3: field 'label': must be a finite number, got "many"/,
    ],
    [
      'names and their number',
      'text\tlabel\na\tx\nb\ty\n',
      { labelNames: ['x', 'y'], numLabels: 3 },
      /numLabels is 3, but 2 names are given/,
    ],
    [
      'names in the data that numLabels contradicts',
      'text\tlabel\na\tx\nb\ty\n',
      { numLabels: 3 },
      /the data names 2 classes \(x, y\), numLabels is 3: give labelNames/,
    ],
    [
      'a name among ids',
      'text\tlabel\na\t0\nb\tgood\nc\t1\n',
      { numLabels: 2 },
      /rows\.tsv:3: field 'label': "good" is not one of the ids 0\.\.1 \(numLabels 2\)$/,
    ],
    [
      'one class only',
      'text\tlabel\na\t0\nb\t0\n',
      {},
      /single_label_classification needs 2 labels at least, there is 1/,
    ],
    [
      'no such text field',
      'text\tlabel\na\t0\n',
      { textField: 'sentence' },
      /rows\.tsv:2: no field 'sentence' \(fields: text, label\)/,
    ],
    [
      'no header',
      'a\t0\nb\t1\n',
      {},
      /rows\.tsv:2: no field 'label' for the label \(fields: 0, a\); a \.tsv or \.csv file without a header/,
    ],
    [
      'half a pair',
      'text\tlabel\na\t0\n',
      { textPairField: 'text' },
      /textPairField needs textField/,
    ],
    [
      'a length without room',
      'text\tlabel\na\t0\n',
      { maxLength: 2 },
      /maxLength 2 leaves no room/,
    ],
    ['a batch size', 'text\tlabel\na\t0\n', { batchSize: 0 }, /batchSize must be an integer/],
  ])('%s', async (_, content, options, message) => {
    await expect(fromFile(content, options)).rejects.toThrow(message);
    await expect(fromFile(content, options)).rejects.toThrow(ArgumentError);
  });

  it.each<[unknown[], RegExp]>([
    [[[1, 0], [1]], /row 1: field 'label': must hold 2 number\(s\), got 1: \[1\]/],
    [
      [
        [1, 0],
        [0, 2],
      ],
      /row 1: field 'label': must hold zeros and ones, got 2/,
    ],
    [[[1, 0], 1], /row 1: field 'label': must be a list, got 1/],
    [[0, null, 1], /row 1: field 'label': null is not one of the ids/],
    [[0, undefined, 1], /row 1: field 'label': nothing is not one of the ids/],
    [[0, 0.5, 1], /row 1: field 'label': 0\.5 is not one of the ids/],
  ])('labels %j', async (labels, message) => {
    const rows = labels.map((label) => ({ text: 'a', label }));
    await expect(made(rows)).rejects.toThrow(message);
  });

  it('a text taken for the label, as a warning', async () => {
    const texts = Array.from({ length: 30 }, (_, i) => ({ text: 'a', label: `film ${i % 25}` }));
    const warnings: string[] = [];
    const options = { onWarning: ({ message }: { message: string }) => warnings.push(message) };
    await made(texts, options);
    expect(warnings).toEqual([
      '30 examples have 25 different labels: are the fields right (text -> label)?',
    ]);
    warnings.length = 0;
    await made([...texts, ...texts], options);
    expect(warnings).toEqual([]);
  });

  it('a text that is missing', async () => {
    const rows = [
      { text: 'a', label: 0 },
      { text: null, label: 1 },
    ];
    await expect(made(rows)).rejects.toThrow(/row 1: field 'text' must be text, got null/);
  });
});
