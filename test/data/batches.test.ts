import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Batches, type BatchOptions } from '../../lib/data/batches.ts';
import { type Batch, collate } from '../../lib/data/collate.ts';
import type { DataWarning } from '../../lib/data/dataset.ts';
import type { Example } from '../../lib/data/example.ts';
import { groupStarts } from '../../lib/data/grouping.ts';
import { arrayRows } from '../../lib/data/rows.ts';
import { ArgumentError } from '../../lib/errors.ts';
import { tinyTokenizer } from '../support/tiny_tokenizer.ts';

const tokenizer = tinyTokenizer();
const kPlain = { promptTemplate: 'none', promptField: 'q', responseField: 'a' };
/** Row i: a prompt of one letter and i % 5 + 1 letters of answer, so i % 5 + 3 tokens. */
const rows = (n: number) =>
  Array.from({ length: n }, (_, i) => ({ q: 'q', a: 'xyzvw'.slice(0, (i % 5) + 1) }));
const make = (n: number, options: BatchOptions = {}) =>
  Batches.create(arrayRows(rows(n)), tokenizer, { ...kPlain, ...options });

async function all(batches: Batches, epoch = 0, start = 0): Promise<Batch[]> {
  const list: Batch[] = [];
  for await (const batch of batches.batches(epoch, start)) list.push(batch);
  return list;
}
const order = (list: Batch[]) => list.flatMap((batch) => [...(batch.indices as Int32Array)]);

const examples = fc.array(
  fc.array(fc.tuple(fc.nat(500), fc.nat(1)), { minLength: 1, maxLength: 9 }).map(
    (tokens): Example => ({
      ids: Int32Array.from(tokens, ([id]) => id),
      supervised: Uint8Array.from(tokens, ([, s]) => s),
    }),
  ),
  { minLength: 1, maxLength: 6 },
);

describe('collate', () => {
  it('has the default seed 42', async () => {
    expect(order(await all(await make(20)))).toEqual(
      order(await all(await make(20, { seed: 42 }))),
    );
  });

  it('shifts the targets once, within each segment', () => {
    const batch = collate([
      { ids: Int32Array.of(5, 6, 7), supervised: Uint8Array.of(0, 1, 1) },
      { ids: Int32Array.of(8, 9), supervised: Uint8Array.of(1, 1) },
    ]);
    expect(batch).toEqual({
      inputIds: Int32Array.of(5, 6, 7, 8, 9),
      positions: Int32Array.of(0, 1, 2, 0, 1),
      cuSeqlens: Int32Array.of(0, 3, 5),
      // 8 is supervised, but is the first of its segment: the last row of the segment before must not predict it.
      targets: Int32Array.of(6, 7, -100, 9, -100),
    });
  });

  it('pads to the longest without supervising padding, even with pad = EOS', () => {
    const batch = collate(
      [
        { ids: Int32Array.of(5, 2), supervised: Uint8Array.of(0, 1) },
        { ids: Int32Array.of(8, 9, 3, 2), supervised: Uint8Array.of(0, 0, 1, 1) },
      ],
      { padding: 'longest', padId: 2 },
    );
    expect(batch.inputIds).toEqual(Int32Array.of(5, 2, 2, 2, 8, 9, 3, 2));
    expect(batch.targets).toEqual(Int32Array.of(2, -100, -100, -100, -100, 3, 2, -100));
    expect(batch.cuSeqlens).toEqual(Int32Array.of(0, 4, 8));
    expect(batch.lengths).toEqual(Int32Array.of(2, 4));
    expect(batch.positions).toEqual(Int32Array.of(0, 1, 2, 3, 0, 1, 2, 3));
  });

  it('holds the same rows padded and unpadded', () => {
    fc.assert(
      fc.property(examples, (list) => {
        const tight = collate(list);
        const padded = collate(list, { padding: 'longest', padId: 1 });
        list.forEach((example, b) => {
          const t = tight.cuSeqlens[b] as number;
          const p = padded.cuSeqlens[b] as number;
          const n = example.ids.length;
          for (const key of ['inputIds', 'positions', 'targets'] as const) {
            expect(padded[key].slice(p, p + n)).toEqual(tight[key].slice(t, t + n));
          }
          expect(padded.targets.slice(p + n, padded.cuSeqlens[b + 1])).toEqual(
            new Int32Array((padded.cuSeqlens[b + 1] as number) - p - n).fill(-100),
          );
          // By definition row t predicts id t+1 if that is supervised.
          for (let row = 0; row < n; row++) {
            const expected =
              row + 1 < n && example.supervised[row + 1] ? example.ids[row + 1] : -100;
            expect(tight.targets[t + row]).toBe(expected);
          }
        });
      }),
    );
  });

  it('refuses an empty list of examples', () => {
    expect(() => collate([])).toThrow(ArgumentError);
    expect(() => collate([{ ids: new Int32Array(), supervised: new Uint8Array() }])).toThrow(
      ArgumentError,
    );
  });
});

describe('groupStarts', () => {
  it('packs every example once, in order, within batchSize rows of the given tokens', () => {
    const lengths = fc.array(fc.integer({ min: 1, max: 10 }), { minLength: 1, maxLength: 60 });
    fc.assert(
      fc.property(lengths, fc.integer({ min: 1, max: 4 }), (list, batchSize) => {
        const sequence = Uint32Array.from(list, (_, i) => i);
        const starts = groupStarts(sequence, list, { batchSize, packInto: 10 });
        expect(starts[0]).toBe(0);
        expect(starts.at(-1)).toBe(list.length);
        for (let g = 0; g + 1 < starts.length; g++) {
          const [from, to] = [starts[g] as number, starts[g + 1] as number];
          expect(to).toBeGreaterThan(from);
          // The definition: greedy filling.
          const bins: number[] = [];
          for (const length of list.slice(from, to)) {
            const last = bins.at(-1);
            if (last !== undefined && last + length <= 10) bins[bins.length - 1] = last + length;
            else bins.push(length);
          }
          expect(bins.length).toBeLessThanOrEqual(batchSize);
          const next = list[to];
          if (next !== undefined) {
            expect(bins.length).toBe(batchSize);
            expect((bins.at(-1) as number) + next).toBeGreaterThan(10);
          }
        }
      }),
    );
  });
});

describe('Batches', () => {
  it('gives every example once per epoch, in an order that seed and epoch determine', async () => {
    const batches = await make(23, { batchSize: 4, seed: 7 });
    expect(batches.batchCount(0)).toBe(6);
    const first = order(await all(batches, 0));
    const second = order(await all(batches, 1));
    const sorted = (list: number[]) => [...list].sort((a, b) => a - b);
    expect(sorted(first)).toEqual(Array.from({ length: 23 }, (_, i) => i));
    expect(sorted(second)).toEqual(sorted(first));
    expect(second).not.toEqual(first);
    expect(order(await all(await make(23, { batchSize: 4, seed: 7 }), 0))).toEqual(first);
    expect(order(await all(await make(23, { batchSize: 4, seed: 8 }), 0))).not.toEqual(first);
    const plain = await make(23, { batchSize: 4, shuffle: false });
    expect(order(await all(plain, 3))).toEqual(sorted(first));
  });

  it('continues from any micro-batch bit for bit', async () => {
    for (const packing of [false, true]) {
      const options = { batchSize: 2, seed: 3, packing, maxLength: 12 };
      const whole = await all(await make(31, options), 2);
      const resumed = await make(31, { ...options, cacheBytes: 0 });
      for (const start of [0, 1, whole.length - 1, whole.length]) {
        expect(await all(resumed, 2, start)).toEqual(whole.slice(start));
      }
    }
  });

  it('packs the same examples that it gives unpacked', async () => {
    const packed = await make(40, { packing: true, batchSize: 2, maxLength: 16 });
    const list = await all(packed);
    expect(list.length).toBe(packed.batchCount(0));
    expect(list.length).toBeLessThan(20);
    for (const batch of list) expect(batch.inputIds.length).toBeLessThanOrEqual(32);
    const single = await all(await make(40, { batchSize: 1 }));
    const byIndex = new Map(order(single).map((index, i) => [index, single[i] as Batch]));
    for (const batch of list) {
      batch.indices?.forEach((index, b) => {
        const alone = byIndex.get(index) as Batch;
        const [from, to] = [batch.cuSeqlens[b], batch.cuSeqlens[b + 1]];
        for (const key of ['inputIds', 'positions', 'targets'] as const) {
          expect(batch[key].slice(from, to)).toEqual(alone[key]);
        }
      });
    }
  });

  it('leaves out examples without supervised tokens, with a warning', async () => {
    const warnings: DataWarning[] = [];
    const data = [
      { q: 'q', a: 'r' },
      { q: 'long prompt', a: 'r' },
      { q: 'q', a: 'rstuv' },
    ];
    const options = { ...kPlain, maxLength: 4, onWarning: (w: DataWarning) => warnings.push(w) };
    const batches = await Batches.create(arrayRows(data), tokenizer, options);
    expect(order(await all(batches)).sort()).toEqual([0, 2]);
    expect(batches.statistics).toMatchObject({ rows: 3, examples: 2, skipped: 1, truncated: 2 });
    expect(warnings.map(({ message }) => message)).toEqual([
      '1 of 3 examples have no supervised token within 4 tokens and are left out (first: row 1); raise maxLength to train on them',
      '2 of 3 examples are longer than 4 tokens and were cut',
    ]);
    await expect(
      Batches.create(arrayRows(data), tokenizer, { ...options, onUnsupervised: 'error' }),
    ).rejects.toThrow(/^row 1: no supervised token within 4 tokens/);
    await expect(
      Batches.create(arrayRows([{ q: 'long prompt', a: 'r' }]), tokenizer, options),
    ).rejects.toThrow(/row 0: no supervised token.*nor in any of the 1 rows/);
  });

  it('reports its progress while reading', async () => {
    const seen: number[] = [];
    await make(200, { onProgress: (read) => seen.push(read) });
    expect(seen).toEqual([0, 64, 128, 192]);
  });

  it('counts the tokens of an epoch', async () => {
    const batches = await make(10);
    const list = await all(batches);
    const { tokens, supervisedTokens, longest } = batches.statistics;
    expect(list.reduce((n, b) => n + b.inputIds.length, 0)).toBe(tokens);
    expect(list.reduce((n, b) => n + b.targets.filter((t) => t >= 0).length, 0)).toBe(
      supervisedTokens,
    );
    expect(longest).toBe(7);
  });

  it('has a fingerprint that depends on data, order and batching', async () => {
    const print = async (n: number, options: BatchOptions = {}) =>
      (await make(n, options)).fingerprint;
    const base = await print(6);
    expect(await print(6, { cacheBytes: 0 })).toBe(base);
    const others = await Promise.all([
      print(7),
      print(6, { seed: 1 }),
      print(6, { batchSize: 2 }),
      print(6, { maxLength: 6 }),
      print(6, { packing: true }),
      print(6, { promptTemplate: 'x{q}' }),
    ]);
    expect(new Set([base, ...others]).size).toBe(7);
  });

  it.each(['none', 'longest'] as const)(
    'knows the rows of its largest micro-batch, with padding %s',
    async (padding) => {
      const data = await make(9, { padding, batchSize: 4 });
      for (const epoch of [0, 1, 2]) {
        const sizes = (await all(data, epoch)).map(({ inputIds }) => inputIds.length);
        expect(data.largestBatch(epoch)).toBe(Math.max(...sizes));
      }
      // Padding makes a difference.
      const tokens = (await all(data)).map(({ lengths }) => lengths?.reduce((a, b) => a + b));
      if (padding === 'longest')
        expect(Math.max(...tokens.map(Number))).toBeLessThan(data.largestBatch(0));
    },
  );

  it('names the row that lacks a field, and bad options', async () => {
    const data = [
      { q: 'q', a: 'r' },
      { q: 'q', b: 'r' },
    ];
    await expect(Batches.create(arrayRows(data), tokenizer, kPlain)).rejects.toThrow(
      "row 1: no field 'a' (fields: q, b)",
    );
    await expect(Batches.create(arrayRows([{ x: 1 }]), tokenizer)).rejects.toThrow(
      /row 0: cannot tell which fields .*\(fields: x\)/,
    );
    expect(() => arrayRows([])).toThrow(/list of rows is empty/);
    await expect(make(3, { batchSize: 0 })).rejects.toThrow(
      /batchSize must be a whole number >= 1, got 0/,
    );
    await expect(make(3, { maxLength: 1 })).rejects.toThrow(/maxLength/);
    await expect(make(3, { packing: true, padding: 'longest' })).rejects.toThrow(
      /exclude each other/,
    );
    await expect(make(3, { signal: AbortSignal.abort() })).rejects.toThrow(/abort/i);
  });
});

describe('empty answers', () => {
  const data = ['x', '', 'y', ' '].map((a) => ({ q: 'q', a }));

  it('are left out with a warning that names the first row', async () => {
    const warnings: DataWarning[] = [];
    const onWarning = (warning: DataWarning) => void warnings.push(warning);
    const batches = await Batches.create(arrayRows(data), tokenizer, { ...kPlain, onWarning });
    expect(order(await all(batches)).sort()).toEqual([0, 2]);
    expect(batches.statistics).toMatchObject({ rows: 4, examples: 2, skipped: 2 });
    expect(warnings).toEqual([
      {
        code: 'answers_empty',
        message: expect.stringMatching(
          /^2 of the answers are empty and left out, .*\(first: row 1\)/,
        ),
      },
    ]);
  });

  it('are an error where no row may be left out, and where there is nothing else', async () => {
    const strict = { ...kPlain, onUnsupervised: 'error' } as const;
    await expect(Batches.create(arrayRows(data), tokenizer, strict)).rejects.toThrow(
      /^row 1: the answer is empty; complete or remove the row$/,
    );
    const only = arrayRows([{ q: 'q', a: '' }]);
    await expect(Batches.create(only, tokenizer, kPlain)).rejects.toThrow(
      /^row 0: the answer is empty/,
    );
  });
});
