// The data set that all tasks share: each row is read once and in order, memory is bounded, errors name the row, and the order of
// an epoch is a function of its number.
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Dataset, type ExampleKind, forEachRow, type ReadOptions } from '../../lib/data/dataset.ts';
import { epochOrder } from '../../lib/data/grouping.ts';
import { arrayRows, type Row } from '../../lib/data/rows.ts';
import { ArgumentError, FormatError, UnsupportedError } from '../../lib/errors.ts';

const kOrder = { batchSize: 2, shuffle: false, seed: 0 };
const rowsOf = (...lengths: number[]): Row[] => lengths.map((n) => ({ n }));

/**
 * A kind of examples for the tests: an example is its row's number n, of length n, cut on the first side where n > 5, on the
 * second where odd.
 */
function kind(seen: number[] = []): ExampleKind<number, string> {
  return {
    encode: ({ n }) => {
      seen.push(n as number);
      return { example: Math.min(n as number, 5), cut: [(n as number) > 5, (n as number) % 2 > 0] };
    },
    length: (n) => n,
    bytes: () => 10,
    digest: (n, hash) => hash.update(`${n};`),
    collate: (examples, indices) => `${examples.join(' ')} of ${indices.join(' ')}`,
  };
}
const read = (rows: Row[], options: Partial<ReadOptions<number>> = {}, of = kind()) =>
  Dataset.read(arrayRows(rows), of, { order: kOrder, ...options });

async function all<B>(batches: AsyncIterable<B>): Promise<B[]> {
  const list: B[] = [];
  for await (const batch of batches) list.push(batch);
  return list;
}

describe('Dataset', () => {
  it('counts the examples that it keeps, and truncations also of those that it leaves out', async () => {
    const data = await read(rowsOf(2, 7, 9, 3), { keep: (_, index) => index !== 2 });
    expect(data.counts).toEqual({
      rows: 4,
      examples: 3,
      tokens: 2 + 5 + 3,
      longest: 5,
      truncated: 3,
      truncatedSides: [2, 3],
    });
    expect(await all(data.batches(0))).toEqual(['2 5 of 0 1', '3 of 3']);
    expect(await all(data.batches(0, 1))).toEqual(['3 of 3']);
    expect(data.batchCount(0)).toBe(2);
  });

  it('encodes again only the examples that have no room in memory', async () => {
    const seen: number[] = [];
    const data = await read(rowsOf(1, 2, 3, 4), { cacheBytes: 25 }, kind(seen));
    expect(seen).toEqual([1, 2, 3, 4]);
    expect(await all(data.batches(0))).toEqual(['1 2 of 0 1', '3 4 of 2 3']);
    expect(seen).toEqual([1, 2, 3, 4, 3, 4]);
    expect(data.collateKept(Uint32Array.of(1, 0))).toBe('2 1 of 1 0');
    expect(() => data.collateKept(Uint32Array.of(2))).toThrow(ArgumentError);
  });

  it('refuses an example that is not the one that was read at first', async () => {
    const rows = rowsOf(1, 2, 3, 4);
    const data = await read(rows, { cacheBytes: 25 });
    Object.assign(rows[1] as Row, { n: 3 }); // is in memory
    Object.assign(rows[3] as Row, { n: 3 });
    expect(await data.example(1)).toBe(2);
    expect(await data.example(2)).toBe(3);
    await expect(data.example(3)).rejects.toMatchObject({
      code: 'ERR_FILE_CHANGED',
      message: expect.stringMatching(/^row 3: the row is not what it was.*; restore/),
    });
  });

  it('has a digest of all examples in the order of the rows, including those that it leaves out', async () => {
    const print = async (rows: Row[], options: Partial<ReadOptions<number>> = {}) =>
      (await read(rows, options)).digest.toString('hex');
    const base = await print(rowsOf(1, 2, 3));
    expect(await print(rowsOf(1, 2, 3), { keep: () => false, cacheBytes: 0 })).toBe(base);
    expect(await print(rowsOf(1, 3, 2))).not.toBe(base);
    expect(await print(rowsOf(1, 2))).not.toBe(base);
  });

  it('adds the row to an error, whose class it keeps', async () => {
    const failing = (error: Error): ExampleKind<number, string> => ({
      ...kind(),
      encode: ({ n }) => {
        if (n === 3) throw error;
        return { example: n as number, cut: [] };
      },
    });
    const fails = (error: Error) => read(rowsOf(1, 3), {}, failing(error));
    await expect(fails(new ArgumentError('odd'))).rejects.toThrow(new ArgumentError('row 1: odd'));
    await expect(fails(new UnsupportedError('odd'))).rejects.toThrow(UnsupportedError);
    await expect(fails(new FormatError('of a token'))).rejects.toThrow(/^row 1: of a token; fetch/);
    // A file that is damaged has said where already; other errors are faults of the code.
    await expect(fails(new FormatError('f:3: bad', { path: 'f' }))).rejects.toThrow(
      /^f:3: bad; fetch/,
    );
    await expect(fails(new TypeError('a fault'))).rejects.toThrow(/^a fault$/);
  });

  it('stops with the reason of its signal, between rows', async () => {
    const stop = new AbortController();
    const visited: number[] = [];
    const reading = forEachRow(
      arrayRows(rowsOf(...Array(200).fill(1))),
      { signal: stop.signal },
      async (index) => {
        visited.push(index);
        if (index === 70) stop.abort(new Error('enough'));
      },
    );
    await expect(reading).rejects.toThrow('enough');
    expect(visited).toHaveLength(128);
  });
});

describe('epochOrder', () => {
  it('has every kept example once, in groups that are a function of seed and epoch', () => {
    const lengths = fc.array(fc.integer({ min: 1, max: 9 }), { minLength: 1, maxLength: 300 });
    const options = fc.record({
      batchSize: fc.integer({ min: 1, max: 4 }),
      shuffle: fc.boolean(),
      seed: fc.nat(),
      byLength: fc.boolean(),
    });
    fc.assert(
      fc.property(lengths, options, fc.nat(5), (list, given, epoch) => {
        const kept = Uint32Array.from(list.keys()).filter((i) => (list[i] as number) > 1);
        const { order, starts } = epochOrder(kept, list, epoch, given);
        expect([...order].sort((a, b) => a - b)).toEqual([...kept]);
        expect(epochOrder(kept, list, epoch, given)).toEqual({ order, starts });
        const sizes = Array.from(starts.subarray(1), (end, g) => end - (starts[g] as number));
        expect(sizes.reduce((sum, size) => sum + size, 0)).toBe(kept.length);
        // At most one group is smaller than a batch, and none is larger.
        expect(sizes.filter((size) => size < given.batchSize).length).toBeLessThanOrEqual(1);
        expect(Math.max(0, ...sizes)).toBeLessThanOrEqual(given.batchSize);
      }),
    );
  });
});
