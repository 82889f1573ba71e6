// Prompts and responses as sources and targets: encoding and truncation as in transformers, micro-batches against plain loops,
// order, resuming, fingerprints, and errors of bad rows.
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { DataWarning } from '../../lib/data/dataset.ts';
import { arrayRows, type Row } from '../../lib/data/rows.ts';
import { Seq2SeqBatches, type Seq2SeqBatchOptions } from '../../lib/data/seq2seq_batches.ts';
import {
  collateSeq2Seq,
  encodeSeq2Seq,
  type Seq2SeqExample,
  type Seq2SeqExamples,
} from '../../lib/data/seq2seq_example.ts';
import { ArgumentError } from '../../lib/errors.ts';
import { Tokenizer } from '../../lib/text/tokenizer.ts';
import { fixturePath, readJson } from '../support/fixtures.ts';
import {
  kTinyT5Pieces,
  kTinyT5TokenizerConfig,
  tinyT5Tokenizer,
  tinyT5TokenizerJson,
} from '../support/tiny_t5_tokenizer.ts';

const tokenizer = tinyT5Tokenizer();
const id = (piece: string): number => 3 + kTinyT5Pieces.findIndex(([name]) => name === piece);
const [the, cat, sat, katze] = ['▁the', '▁cat', '▁sat', '▁Katze'].map(id) as [
  number,
  number,
  number,
  number,
];
const kEnd = 1;
/** The decoder's start token: not the padding id, so that a mix-up of the two is found. */
const kStart = 9;

const made = (rows: Row[], options: Partial<Seq2SeqBatchOptions> = {}) =>
  Seq2SeqBatches.create(arrayRows(rows), tokenizer, { decoderStartTokenId: kStart, ...options });
const pair = (prompt: unknown, response: unknown): Row => ({ prompt, response });
const words = (n: number): string => 'the cat sat a '.repeat(n).split(' ').slice(0, n).join(' ');
/** Rows of which row i has i % 4 words of source and i % 3 of target. */
const rows = (n: number) =>
  Array.from({ length: n }, (_, i) => pair(words(i % 4), words(1 + (i % 3))));

async function all(data: Seq2SeqBatches, epoch = 0, start = 0): Promise<Seq2SeqExamples[]> {
  const list: Seq2SeqExamples[] = [];
  for await (const batch of data.batches(epoch, start)) list.push(batch);
  return list;
}
const order = (list: Seq2SeqExamples[]) => list.flatMap(({ indices }) => [...indices]);

/** Source and target of an encoded example as plain arrays. */
function encoded(
  [source, target]: [string, string],
  lengths: { maxSourceLength?: number; maxTargetLength?: number } = {},
  by = tokenizer,
) {
  const limits = { maxSourceLength: 512, maxTargetLength: 128, ...lengths };
  const { example, cut } = encodeSeq2Seq(by, [source, target], limits);
  return { source: [...example.source], target: [...example.target], cut };
}

describe('encodeSeq2Seq', () => {
  it('ends both sides with </s>', () => {
    expect(encoded(['the cat sat', 'Katze'])).toEqual({
      source: [the, cat, sat, kEnd],
      target: [katze, kEnd],
      cut: [false, false],
    });
  });

  it('encodes an empty text, and one that is only </s>, as the end token', () => {
    expect(encoded(['', ''])).toMatchObject({ source: [kEnd], target: [kEnd] });
    // The tokenizer adds its own end token to that of the text, as transformers' fast tokenizers do.
    expect(encoded(['</s>', 'cat</s>'])).toMatchObject({
      source: [kEnd, kEnd],
      target: [cat, kEnd, kEnd],
    });
  });

  it('truncates each side and keeps its end token', () => {
    const texts: [string, string] = ['the cat sat the', 'Katze the cat'];
    expect(encoded(texts, { maxSourceLength: 3 })).toEqual({
      source: [the, cat, kEnd],
      target: [katze, the, cat, kEnd],
      cut: [true, false],
    });
    expect(encoded(texts, { maxTargetLength: 2 })).toEqual({
      source: [the, cat, sat, the, kEnd],
      target: [katze, kEnd],
      cut: [false, true],
    });
    expect(encoded(texts, { maxSourceLength: 5, maxTargetLength: 4 }).cut).toEqual([false, false]);
  });

  // The file is written by tools/fixtures/t5_ids.mjs.
  const expected = readJson(fixturePath('data/t5_ids.json')) as [string, number, number[]][];
  it.each(expected)('gives the ids of Hugging Face for %j within %d', (text, length, ids) => {
    const lengths = { maxSourceLength: length, maxTargetLength: length };
    expect(encoded([text, text], lengths)).toMatchObject({ source: ids, target: ids });
  });

  it('gives the same ids with a tokenizer that adds no end token of its own', () => {
    const bare = tinyT5Tokenizer({ withEnd: false });
    const text = fc.array(fc.constantFrom('the', 'cat', 'sat', 'a'), { maxLength: 8 });
    fc.assert(
      fc.property(text, text, fc.integer({ min: 2, max: 9 }), (a, b, maxSourceLength) => {
        const texts: [string, string] = [a.join(' '), b.join(' ')];
        const limits = { maxSourceLength, maxTargetLength: 4 };
        expect(encoded(texts, limits, bare)).toEqual(encoded(texts, limits));
      }),
    );
    // transformers' slow T5 tokenizer adds no second end token either.
    expect(encoded(['cat</s>', ''], {}, bare)).toMatchObject({ source: [cat, kEnd] });
  });

  it('refuses a tokenizer without an end token', () => {
    const { eos_token: _, ...config } = kTinyT5TokenizerConfig;
    const endless = Tokenizer.fromJson(tinyT5TokenizerJson(), config);
    expect(() => encoded(['a', 'a'], {}, endless)).toThrow(
      /without an end-of-sequence token, .* eos_token in tokenizer_config/,
    );
  });
});

describe('collateSeq2Seq', () => {
  it('concatenates the sides of all examples and shifts the targets once', () => {
    const batch = collateSeq2Seq(
      [
        { source: Int32Array.of(5, 6, 1), target: Int32Array.of(7, 8, 1) },
        { source: Int32Array.of(1), target: Int32Array.of(1) },
        { source: Int32Array.of(4, 1), target: Int32Array.of(3, 1) },
      ],
      { decoderStartTokenId: 9, indices: [4, 0, 2] },
    );
    expect(batch).toEqual({
      inputIds: Int32Array.of(5, 6, 1, 1, 4, 1),
      positions: Int32Array.of(0, 1, 2, 0, 0, 1),
      cuSeqlens: Int32Array.of(0, 3, 4, 6),
      decoder: {
        inputIds: Int32Array.of(9, 7, 8, 9, 9, 3),
        positions: Int32Array.of(0, 1, 2, 0, 0, 1),
        cuSeqlens: Int32Array.of(0, 3, 4, 6),
        targets: Int32Array.of(7, 8, 1, 1, 3, 1),
      },
      indices: Int32Array.of(4, 0, 2),
    });
  });

  it('agrees with plain loops for any examples', () => {
    const ids = fc.array(fc.nat(500), { minLength: 1, maxLength: 9 });
    const examples = fc.array(fc.tuple(ids, ids), { minLength: 1, maxLength: 6 });
    fc.assert(
      fc.property(examples, fc.nat(500), (list, decoderStartTokenId) => {
        const batch = collateSeq2Seq(
          list.map(
            ([source, target]): Seq2SeqExample => ({
              source: Int32Array.from(source),
              target: Int32Array.from(target),
            }),
          ),
          { decoderStartTokenId, indices: list.map((_, b) => b) },
        );
        const plain = (sides: number[][]) => ({
          inputIds: sides.flat(),
          positions: sides.flatMap((side) => side.map((_, t) => t)),
          cuSeqlens: [0, ...sides.map((_, b) => sides.slice(0, b + 1).flat().length)],
        });
        const arrays = (segments: object, keys: string[]) =>
          Object.fromEntries(keys.map((key) => [key, [...(segments as never)[key]]]));
        const keys = ['inputIds', 'positions', 'cuSeqlens'];
        expect(arrays(batch, keys)).toEqual(plain(list.map(([source]) => source)));
        // Labels shifted right behind the start token, as in transformers.
        const shifted = list.map(([, target]) => [decoderStartTokenId, ...target.slice(0, -1)]);
        expect(arrays(batch.decoder, keys)).toEqual(plain(shifted));
        expect([...batch.decoder.targets]).toEqual(list.flatMap(([, target]) => target));
      }),
    );
  });

  it('refuses an empty list, and a side without tokens', () => {
    const options = { decoderStartTokenId: 0, indices: [0] };
    const [some, none] = [Int32Array.of(1), new Int32Array()];
    expect(() => collateSeq2Seq([], options)).toThrow(ArgumentError);
    expect(() => collateSeq2Seq([{ source: none, target: some }], options)).toThrow(ArgumentError);
    expect(() => collateSeq2Seq([{ source: some, target: none }], options)).toThrow(ArgumentError);
  });
});

describe('Seq2SeqBatches', () => {
  it('uses prompts and responses unchanged, without a template', async () => {
    const data = await made([pair('the cat', 'Katze'), pair('sat', 'Katze')], {
      batchSize: 2,
      shuffle: false,
    });
    expect(await all(data)).toEqual([
      {
        inputIds: Int32Array.of(the, cat, kEnd, sat, kEnd),
        positions: Int32Array.of(0, 1, 2, 0, 1),
        cuSeqlens: Int32Array.of(0, 3, 5),
        decoder: {
          inputIds: Int32Array.of(kStart, katze, kStart, katze),
          positions: Int32Array.of(0, 1, 0, 1),
          cuSeqlens: Int32Array.of(0, 2, 4),
          targets: Int32Array.of(katze, kEnd, katze, kEnd),
        },
        indices: Int32Array.of(0, 1),
      },
    ]);
    expect(data.format).toBe('prompt -> response');
    expect(data.statistics).toEqual({
      rows: 2,
      examples: 2,
      skipped: 0,
      truncated: 0,
      tokens: 9,
      supervisedTokens: 4,
      longest: 3,
      longestSource: 3,
      longestTarget: 2,
      truncatedSources: 0,
      truncatedTargets: 0,
    });
  });

  it('supports named fields, a template, and a prompt field beside another that is called prompt', async () => {
    const row = { prompt: 'sat', text: 'cat', de: 'Katze' };
    const fields = { promptField: 'text', responseField: 'de' };
    const source = async (options: Partial<Seq2SeqBatchOptions>) => [
      ...((await all(await made([row], options)))[0] as Seq2SeqExamples).inputIds,
    ];
    expect(await source(fields)).toEqual([cat, kEnd]);
    expect(await source({ ...fields, promptTemplate: 'the {text}' })).toEqual([the, cat, kEnd]);
    const own = { promptTemplate: '{text} {prompt}', responseField: 'de' };
    expect(await source(own)).toEqual([cat, sat, kEnd]);
  });

  it('leaves out empty targets, with a warning that names the first row', async () => {
    const warnings: DataWarning[] = [];
    const onWarning = (warning: DataWarning) => void warnings.push(warning);
    const data = await made([pair('cat', ''), pair('cat', 'Katze')], { onWarning });
    expect(data.statistics).toMatchObject({ rows: 2, examples: 1, skipped: 1 });
    expect(warnings.map(({ code, message }) => [code, message.slice(0, 40)])).toEqual([
      ['answers_empty', '1 of the answers are empty and left out,'],
    ]);
    await expect(made([pair('cat', '')])).rejects.toThrow(/^row 0: the answer is empty/);
  });

  it('warns of truncation and counts it for each side', async () => {
    const warnings: DataWarning[] = [];
    const data = await made(
      [pair(words(6), words(5)), pair(words(2), words(5)), pair('', words(1))],
      {
        maxSourceLength: 4,
        maxTargetLength: 3,
        onWarning: (warning) => warnings.push(warning),
      },
    );
    expect(warnings).toEqual([
      {
        code: 'examples_truncated',
        message: '1 of 3 sources are longer than 4 tokens and were cut',
      },
      {
        code: 'examples_truncated',
        message: '2 of 3 targets are longer than 3 tokens and were cut',
      },
    ]);
    expect(data.statistics).toMatchObject({
      truncated: 2,
      truncatedSources: 1,
      truncatedTargets: 2,
      longestSource: 4,
      longestTarget: 3,
      longest: 4,
      tokens: 4 + 3 + 1 + 3 + 3 + 2,
      supervisedTokens: 8,
    });
    const quiet: DataWarning[] = [];
    await made([pair(words(511), words(127))], { onWarning: (warning) => quiet.push(warning) });
    expect(quiet).toEqual([]);
    await made([pair(words(512), words(128))], { onWarning: (warning) => quiet.push(warning) });
    expect(quiet.map(({ message }) => message)).toEqual([
      '1 of 1 sources are longer than 512 tokens and were cut',
      '1 of 1 targets are longer than 128 tokens and were cut',
    ]);
  });

  it('gives every example once per epoch, in an order that seed and epoch determine', async () => {
    const options = { batchSize: 4, seed: 7 };
    const data = await made(rows(23), options);
    expect(data.batchCount(0)).toBe(6);
    const [first, second] = [order(await all(data, 0)), order(await all(data, 1))];
    const sorted = [...first].sort((a, b) => a - b);
    expect(sorted).toEqual(Array.from({ length: 23 }, (_, i) => i));
    expect(second).not.toEqual(first);
    expect(order(await all(await made(rows(23), options)))).toEqual(first);
    expect(order(await all(await made(rows(23), { ...options, seed: 8 })))).not.toEqual(first);
    expect(order(await all(await made(rows(23), { ...options, shuffle: false }), 3))).toEqual(
      sorted,
    );
    expect(order(await all(await made(rows(23))))).toEqual(
      order(await all(await made(rows(23), { seed: 42, batchSize: 1 }))),
    );
  });

  it('continues from any micro-batch bit for bit, with and without examples in memory', async () => {
    const options = { batchSize: 3, seed: 3 };
    const whole = await all(await made(rows(20), options), 2);
    const resumed = await made(rows(20), { ...options, cacheBytes: 0 });
    for (const start of [0, 1, whole.length - 1, whole.length]) {
      expect(await all(resumed, 2, start)).toEqual(whole.slice(start));
    }
  });

  it('has a fingerprint that depends on data, start token, lengths, order and batching', async () => {
    const print = async (data: Row[], options: Partial<Seq2SeqBatchOptions> = {}) =>
      (await made(data, options)).fingerprint;
    const base = await print(rows(6));
    expect(await print(rows(6), { cacheBytes: 0 })).toBe(base);
    const others = await Promise.all([
      print(rows(7)),
      print([...rows(5), pair('the', 'cat')]),
      print(rows(6), { seed: 1 }),
      print(rows(6), { shuffle: false }),
      print(rows(6), { batchSize: 2 }),
      print(rows(6), { maxSourceLength: 4 }),
      print(rows(6), { maxTargetLength: 4 }),
      print(rows(6), { decoderStartTokenId: 0 }),
      print(rows(6), { promptTemplate: 'a {prompt}' }),
    ]);
    expect(new Set([base, ...others]).size).toBe(10);
    // Moving a token from the end of the source to the front of the target changes the fingerprint.
    const moved = await Promise.all(
      [pair('the cat', 'sat'), pair('the', 'cat sat')].map((row) => print([row])),
    );
    expect(new Set(moved).size).toBe(2);
  });

  it('knows the rows of both sides of its largest micro-batch', async () => {
    const data = await made(rows(11), { batchSize: 3 });
    for (const epoch of [0, 1, 2]) {
      const sizes = (await all(data, epoch)).map(
        ({ inputIds, decoder }) => inputIds.length + decoder.inputIds.length,
      );
      expect(data.largestBatch(epoch)).toBe(Math.max(...sizes));
    }
  });

  it('reports its progress while reading, and stops at an abort', async () => {
    const seen: number[] = [];
    await made(rows(130), { onProgress: (read) => seen.push(read) });
    expect(seen).toEqual([0, 64, 128]);
    const stop = new AbortController();
    const onProgress = (read: number) => {
      if (read === 64) stop.abort();
    };
    await expect(made(rows(130), { onProgress, signal: stop.signal })).rejects.toThrow(/abort/i);
  });

  it.each<[string, Row[], Partial<Seq2SeqBatchOptions>, RegExp]>([
    [
      'a field that is missing',
      [pair('a', 'a'), { prompt: 'a' }],
      {},
      /^row 1: no field 'response' \(fields: prompt\)/,
    ],
    ['a target that is null', [pair('a', null)], {}, /^row 0: field 'response' must be text/],
    ['a source that is a list', [pair('a', 'a'), pair([], 'a')], {}, /^row 1: field 'prompt' must/],
    ['fields that nobody knows', [{ x: 'a', y: 'a' }], {}, /^row 0: cannot tell which fields/],
    [
      'conversations',
      [{ messages: [{ role: 'user', content: 'a' }] }],
      {},
      /^row 0: rows with 'messages' are conversations.*promptField and responseField$/,
    ],
    [
      'no start token',
      rows(2),
      { decoderStartTokenId: -1 },
      /decoderStartTokenId must be a whole number >= 0, got -1/,
    ],
    ['a source without room', rows(2), { maxSourceLength: 1 }, /maxSourceLength must be .* 2/],
    ['a target without room', rows(2), { maxTargetLength: 1 }, /maxTargetLength must be .* 2/],
    ['a batch size', rows(2), { batchSize: 0 }, /batchSize must be a whole number >= 1, got 0/],
  ])('refuses %s', async (_, data, options, message) => {
    await expect(made(data, options)).rejects.toThrow(message);
    await expect(made(data, options)).rejects.toThrow(ArgumentError);
  });
});
