// Micro-batches of labelled rows: fields, labels of every kind, order, and errors that name file, line and field.
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { GLUE_TASKS, glueTask, kMetricNames } from '../../lib/data/glue.ts';
import { epochOrder } from '../../lib/data/grouping.ts';
import { LabelledBatches, type LabelledOptions } from '../../lib/data/labelled_batches.ts';
import { openRows } from '../../lib/data/open_rows.ts';
import { arrayRows, type Row } from '../../lib/data/rows.ts';
import { ArgumentError } from '../../lib/errors.ts';
import { fixturePath, readJson } from '../support/fixtures.ts';
import { tinyTokenizer } from '../support/tiny_tokenizer.ts';
import { tinyWordPiece } from '../support/tiny_wordpiece.ts';

const tokenizer = tinyWordPiece(['a', 'b', 'c']);
const [a, b, c] = [5, 6, 7];
const made = (rows: Row[], options: LabelledOptions = {}) =>
  LabelledBatches.create(arrayRows(rows), tokenizer, { shuffle: false, ...options });

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'balora-labels-'));
});
afterAll(() => rm(folder, { recursive: true }));

describe('a micro-batch', () => {
  it('has its sequences one after the other, with segments, labels and positions', async () => {
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

  it('has sequences truncated to maxLength, with a warning', async () => {
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
    expect(warnings).toEqual(['1 of 2 examples are longer than 4 tokens and were cut']);
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

  it('is a function of seed and epoch, and can be resumed anywhere', async () => {
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

  it('progress is reported, and an abort stops the reading, also that of the labels', async () => {
    const seen: number[] = [];
    const many = Array.from({ length: 130 }, (_, i) => ({ text: 'a', label: i % 2 }));
    await made(many, { onProgress: (read) => seen.push(read) });
    expect(seen).toEqual([0, 64, 128]);
    const stop = new AbortController();
    const source = arrayRows(many);
    const rows = {
      ...source,
      row: (index: number) => {
        if (index === 10) stop.abort();
        return source.row(index);
      },
    };
    await expect(
      LabelledBatches.create(rows, tokenizer, {
        signal: stop.signal,
        onProgress: () => expect.fail('read past the labels'),
      }),
    ).rejects.toThrow(/abort/i);
  });

  it('has the default seed 42', async () => {
    const options = { shuffle: true, numLabels: 2 };
    const rows = Array.from({ length: 20 }, (_, i) => ({ text: 'a', label: i % 2 }));
    const order = (data: LabelledBatches) => [...data.batches()].map(({ indices }) => indices[0]);
    expect(order(await made(rows, options))).toEqual(
      order(await made(rows, { ...options, seed: 42 })),
    );
  });

  it('with groupByLength batches similar lengths, every example once', async () => {
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
    const kept = Uint32Array.from(lengths, (_, i) => i);
    const options = { batchSize: 5, shuffle: false, seed: 0, byLength: true };
    const { order: sorted, starts } = epochOrder(kept, lengths, 0, options);
    expect(Array.from(starts.subarray(0, 4), (at) => lengths[sorted[at] as number])).toEqual([
      13, 9, 6, 3,
    ]);
    expect(kept).toEqual(Uint32Array.from(lengths, (_, i) => i));
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

  it('names match in any case, unless they differ only by case', async () => {
    const labelNames = ['GOOD', 'Bad', 'bad'];
    const data = await made(texts('good', 'Bad', 'bad', 2), { labelNames });
    expect(data.scheme.names).toEqual(labelNames);
    expect([...data.batches()].map(({ labels }) => labels[0])).toEqual([0, 1, 2, 2]);
    await expect(made(texts('good', 'BAD'), { labelNames })).rejects.toThrow(
      /must be one of the ids 0\.\.2 .* names GOOD, Bad, bad, got "BAD"/,
    );
    // A value that cannot become a text.
    await expect(made(texts('good', { toString: 1 }), { labelNames })).rejects.toThrow(
      /must be one of the ids .*, got \{"toString":1\}/,
    );
    const none = await made(texts('good', 'bad'), { labelNames: null });
    expect(none.scheme.names).toEqual(['bad', 'good']);
  });

  it('a number is a name where the names are numbers', async () => {
    const labelNames = ['1', '2', '3'];
    const data = await made(texts(1, '3', 2), { labelNames });
    expect([...data.batches()].map(({ labels }) => labels[0])).toEqual([0, 2, 1]);
    await expect(made(texts(1, 0), { labelNames })).rejects.toThrow(
      /must be one of the ids .*, got 0/,
    );
  });

  it('a single output is a regression', async () => {
    const data = await made(texts('2.5', -1, 0), { numLabels: 1 });
    expect(data.scheme.problemType).toBe('regression');
    expect([...data.batches()].map(({ labels }) => labels)).toEqual(
      [2.5, -1, 0].map((value) => Float32Array.of(value)),
    );
    expect(data.statistics.perClass).toBeNull();
  });

  it('a list, of zeros and ones or of names, is multi-label', async () => {
    const flags = await made(texts([1, 0, 1], '[0, 0, 1]'), { batchSize: 2 });
    expect(flags.scheme).toMatchObject({ problemType: 'multi_label_classification', numLabels: 3 });
    expect([...flags.batches()][0]?.labels).toEqual(Float32Array.of(1, 0, 1, 0, 0, 1));
    expect(flags.statistics.perClass).toEqual([1, 0, 2]);
    const names = await made(texts(['x', 'y'], [], ['y']), { batchSize: 3 });
    expect(names.scheme).toMatchObject({ numLabels: 2, names: ['x', 'y'] });
    expect([...names.batches()][0]?.labels).toEqual(Float32Array.of(1, 1, 0, 0, 0, 1));
  });

  it('a class without examples gives a warning', async () => {
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

  it('every task has the metrics of GLUE', () => {
    const { glue } = readJson(fixturePath('metrics/metrics.json')) as {
      glue: Record<string, string[]>;
    };
    const camel = (name: string) =>
      name.replace(/_(\w)/g, (_, letter: string) => letter.toUpperCase());
    expect(
      Object.fromEntries(Object.entries(GLUE_TASKS).map(([name, { metrics }]) => [name, metrics])),
    ).toEqual(
      Object.fromEntries(Object.entries(glue).map(([name, list]) => [name, list.map(camel)])),
    );
    for (const { metrics } of Object.values(GLUE_TASKS)) {
      for (const metric of metrics) expect(kMetricNames).toContain(metric);
    }
  });

  it('ids and names are converted to the ids of a head with another order', async () => {
    const labelNames = ['CONTRADICTION', 'NEUTRAL', 'ENTAILMENT'];
    const names = ['entailment', 'neutral', 'contradiction'];
    const rows = (labels: unknown[]): Row[] =>
      labels.map((label) => ({ premise: 'a', hypothesis: 'b', label }));
    for (const labels of [
      [0, 1, 2, '2'],
      [...names, 'contradiction'],
    ]) {
      const data = await made(rows(labels), { glue: 'mnli', labelNames });
      expect(data.scheme).toMatchObject({ names: labelNames, numLabels: 3 });
      expect([...data.batches()].map((batch) => batch.labels[0])).toEqual([2, 1, 0, 0]);
    }
    // A head with other names does not determine the order.
    const other = await made(rows([0, 1, 2]), { glue: 'mnli', labelNames: ['x', 'y', 'z'] });
    expect([...other.batches()].map((batch) => batch.labels[0])).toEqual([0, 1, 2]);
    const same = await made(rows([0, 1, 2]), { glue: 'mnli', labelNames: names });
    expect(same.scheme).toEqual((await made(rows([0, 1, 2]), { glue: 'mnli' })).scheme);
  });

  interface Spelling {
    task: string;
    /** Header and a row of the original file; CoLA's has no header. */
    tsv: [header: string[], row: string[]];
    columns?: string[];
    /** A row of the data set on the Hugging Face hub. */
    hub: Row;
    format: [tsv: string, hub: string];
    label: number;
  }
  const pair = ['sentence1', 'sentence2'];
  const texts = { sentence1: 'a', sentence2: 'b c' };
  const kSpellings: Spelling[] = [
    {
      task: 'cola',
      columns: ['source', 'label', 'star', 'sentence'],
      tsv: [[], ['gj04', '1', '', 'a']],
      hub: { sentence: 'a', label: 1, idx: 0 },
      format: ['sentence -> label', 'sentence -> label'],
      label: 1,
    },
    {
      task: 'sst2',
      tsv: [
        ['sentence', 'label'],
        ['a', '1'],
      ],
      hub: { idx: 0, sentence: 'a', label: 1 },
      format: ['sentence -> label', 'sentence -> label'],
      label: 1,
    },
    {
      task: 'mrpc',
      tsv: [
        ['Quality', '#1 ID', '#2 ID', '#1 String', '#2 String'],
        ['1', '7', '8', 'a', 'b c'],
      ],
      hub: { ...texts, label: 1, idx: 0 },
      format: ['#1 String + #2 String -> Quality', 'sentence1 + sentence2 -> label'],
      label: 1,
    },
    {
      task: 'qqp',
      tsv: [
        ['id', 'qid1', 'qid2', 'question1', 'question2', 'is_duplicate'],
        ['9', '7', '8', 'a', 'b c', '1'],
      ],
      hub: { question1: 'a', question2: 'b c', label: 1, idx: 0 },
      format: ['question1 + question2 -> is_duplicate', 'question1 + question2 -> label'],
      label: 1,
    },
    {
      task: 'stsb',
      tsv: [
        ['index', 'genre', 'filename', 'year', 'old_index', 'source1', 'source2', ...pair, 'score'],
        ['0', 'main', 'MSR', '2012', '1', 'none', 'none', 'a', 'b c', '3.800'],
      ],
      hub: { ...texts, label: 3.8, idx: 0 },
      format: ['sentence1 + sentence2 -> score', 'sentence1 + sentence2 -> label'],
      label: Math.fround(3.8),
    },
    {
      task: 'mnli',
      tsv: [
        [
          'index',
          'promptID',
          'pairID',
          'genre',
          'sentence1_parse',
          ...pair,
          'label1',
          'gold_label',
        ],
        ['0', '31', '31n', 'government', '(ROOT (FRAG))', 'a', 'b c', 'neutral', 'contradiction'],
      ],
      hub: { premise: 'a', hypothesis: 'b c', label: 2, idx: 0 },
      format: ['sentence1 + sentence2 -> gold_label', 'premise + hypothesis -> label'],
      label: 2,
    },
    {
      task: 'qnli',
      tsv: [
        ['index', 'question', 'sentence', 'label'],
        ['0', 'a', 'b c', 'not_entailment'],
      ],
      hub: { question: 'a', sentence: 'b c', label: 1, idx: 0 },
      format: ['question + sentence -> label', 'question + sentence -> label'],
      label: 1,
    },
    {
      task: 'rte',
      tsv: [
        ['index', ...pair, 'label'],
        ['0', 'a', 'b c', 'not_entailment'],
      ],
      hub: { ...texts, label: 1, idx: 0 },
      format: ['sentence1 + sentence2 -> label', 'sentence1 + sentence2 -> label'],
      label: 1,
    },
    {
      task: 'wnli',
      tsv: [
        ['index', ...pair, 'label'],
        ['0', 'a', 'b c', '1'],
      ],
      hub: { ...texts, label: 1, idx: 0 },
      format: ['sentence1 + sentence2 -> label', 'sentence1 + sentence2 -> label'],
      label: 1,
    },
  ];
  it('every task is tested below', () => {
    expect(kSpellings.map(({ task }) => task).sort()).toEqual(Object.keys(GLUE_TASKS).sort());
  });

  it.each(kSpellings)("$task: the original TSV's fields and the hub's", async (spelling) => {
    const { task: glue, tsv, columns, hub, format, label } = spelling;
    const path = join(folder, `${glue}.tsv`);
    const [header, row] = tsv;
    await writeFile(
      path,
      `${header.length > 0 ? `${header.join('\t')}\n` : ''}${row.join('\t')}\n`,
    );
    const file = await openRows(path, columns === undefined ? {} : { columns });
    const jsonl = join(folder, `${glue}.jsonl`);
    await writeFile(jsonl, `${JSON.stringify(hub)}\n`);
    const options: LabelledOptions = { glue, shuffle: false };
    const { labelNames, texts: alternatives } = glueTask(glue);
    for (const [rows, wanted] of [
      [file, format[0]],
      [await openRows(jsonl), format[1]],
    ] as const) {
      const data = await LabelledBatches.create(rows, tokenizer, options);
      await rows.close();
      expect(data.format).toBe(wanted);
      const [batch] = [...data.batches()];
      const single = alternatives[0]?.length === 1;
      expect(batch?.inputIds).toEqual(Int32Array.from(single ? [2, a, 3] : [2, a, 3, b, c, 3]));
      expect(Array.from(batch?.labels ?? [])).toEqual([label]);
      expect(data.scheme).toEqual({
        problemType: labelNames === null ? 'regression' : 'single_label_classification',
        numLabels: labelNames?.length ?? 1,
        names: labelNames,
      });
    }
  });
});

describe('bad input names file, line and field', () => {
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
      /rows\.tsv:3: field 'label': must be one of the ids 0\.\.1 \(numLabels 2\), got "2"/,
    ],
    [
      'a negative label',
      'text\tlabel\na\t-1\nb\t1\n',
      { numLabels: 2 },
      /rows\.tsv:2: field 'label': must be one of the ids .*, got "-1"/,
    ],
    [
      'a name that is none of the given ones',
      'text\tlabel\na\tgood\nb\tso-so\n',
      { labelNames: ['good', 'bad'] },
      /rows\.tsv:3: field 'label': must be one of the ids 0\.\.1 .* names good, bad, got "so-so"/,
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
      /the data names 2 classes \(x, y\), numLabels is 3; give the names of all labels as labelNames/,
    ],
    [
      'a name among ids',
      'text\tlabel\na\t0\nb\tgood\nc\t1\n',
      { numLabels: 2 },
      /rows\.tsv:3: field 'label': must be one of the ids 0\.\.1 \(numLabels 2\), got "good"$/,
    ],
    [
      'one class only',
      'text\tlabel\na\t0\nb\t0\n',
      {},
      /single_label_classification needs at least 2 labels, got 1; .*problemType: 'regression'/,
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
      /rows\.tsv:2: no field 'label' for the label \(fields: 0, a\); name it with labelField, or name the columns with columns: /,
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
      /maxLength must be above 2, .* got 2/,
    ],
    [
      'a label of another field, which counts from 0',
      'text\tlabel\na\t0\nb\t2147483646\n',
      {},
      /labels: the data ask for 2147483647 labels, and a head has at most 1048576; check that/,
    ],
    [
      'more labels than a head has',
      'text\tlabel\na\t0\n',
      { numLabels: 2 ** 31 },
      /numLabels must be a whole number >= 1 and <= 1048576, got 2147483648/,
    ],
    [
      'a batch size',
      'text\tlabel\na\t0\n',
      { batchSize: 0 },
      /batchSize must be a whole number >= 1, got 0/,
    ],
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
    [[0, null, 1], /row 1: field 'label': must be one of the ids .*, got null/],
    [[0, undefined, 1], /row 1: field 'label': must be one of the ids .*, got nothing/],
    [[0, 0.5, 1], /row 1: field 'label': must be one of the ids .*, got 0\.5/],
  ])('labels %j', async (labels, message) => {
    const rows = labels.map((label) => ({ text: 'a', label }));
    await expect(made(rows)).rejects.toThrow(message);
  });

  it('a text field that is used as the label, with a warning', async () => {
    const texts = Array.from({ length: 30 }, (_, i) => ({ text: 'a', label: `film ${i % 25}` }));
    const warnings: string[] = [];
    const options = { onWarning: ({ message }: { message: string }) => warnings.push(message) };
    await made(texts, options);
    expect(warnings).toEqual([
      '30 examples have 25 different labels; check that the fields are right (text -> label)',
    ]);
    warnings.length = 0;
    await made([...texts, ...texts], options);
    expect(warnings).toEqual([]);
  });

  it('a text without tokens', async () => {
    const bare = (rows: Row[]) => LabelledBatches.create(arrayRows(rows), tinyTokenizer());
    const first = { text: 'a', label: 0 };
    await expect(bare([first, { text: '', label: 1 }])).rejects.toThrow(
      "row 1: field 'text': the text has no token, and the tokenizer adds none of its own; fill it in",
    );
    const pair = { sentence1: '', sentence2: '', label: 1 };
    await expect(bare([pair, pair])).rejects.toThrow(
      /row 0: field 'sentence1', 'sentence2': the text has no token/,
    );
    await bare([
      { ...pair, sentence2: 'a' },
      { ...pair, sentence1: 'a', label: 0 },
    ]);
    // An empty text is allowed where the tokenizer adds special tokens.
    await made([first, { text: '', label: 1 }]);
  });

  it('a text that is missing', async () => {
    const rows = [
      { text: 'a', label: 0 },
      { text: null, label: 1 },
    ];
    await expect(made(rows)).rejects.toThrow(/row 1: field 'text' must be text, got null/);
  });
});
