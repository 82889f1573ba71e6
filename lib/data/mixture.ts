/**
 * The examples of an epoch that is mixed from several files by their weights. Each file is a stream without end, its examples in a new
 * order again and again, of which every epoch takes the next share. So all examples of a file are used equally often, and the examples
 * of an epoch are a pure function of (seed, epoch).
 */
import { shuffledOrder } from './philox.ts';
import type { RowFile } from './rows.ts';

/** Offset that sets the keys of the files' shuffles apart from those of the epochs. */
const kFileShuffle = 2 ** 42;

/**
 * The examples of an epoch, as many as there are in all files, in the files' order; without shuffling, the files take turns in
 * proportion to their weights.
 * @param kept indices of the examples that are used, in increasing order, some of every file
 */
export function mixedOrder(
  kept: Uint32Array,
  files: readonly RowFile[],
  { epoch, shuffle, seed }: { epoch: number; shuffle: boolean; seed: number },
): Uint32Array {
  const weights = files.map(({ weight }) => weight ?? 0);
  const counts = shares(kept.length, weights);
  const drawn = files.map(({ start, length }, file) => {
    const own = kept.filter((index) => index >= start && index < start + length);
    const count = counts[file] as number;
    const key = shuffle ? (seed + kFileShuffle * (file + 1)) % 2 ** 53 : null;
    return [...stream(own, { from: epoch * count, count, seed: key })];
  });
  return Uint32Array.from(shuffle ? drawn.flat() : inTurns(drawn));
}

/** Divides a number by weights, by the method of largest remainders; of equal remainders the first one is rounded up. */
export function shares(total: number, weights: readonly number[]): number[] {
  const sum = weights.reduce((a, b) => a + b, 0);
  const exact = weights.map((weight) => (total * weight) / sum);
  const counts = exact.map(Math.floor);
  const left = total - counts.reduce((a, b) => a + b, 0);
  const remainders = exact.map((value, i) => value - (counts[i] as number));
  const order = [...weights.keys()].sort(
    (a, b) => (remainders[b] as number) - (remainders[a] as number) || a - b,
  );
  for (const i of order.slice(0, left)) counts[i] = (counts[i] as number) + 1;
  return counts;
}

/** `count` elements, from position `from` on, of passes over a list, each in an order of its own; seed null: in the list's order. */
function* stream(
  own: Uint32Array,
  { from, count, seed }: { from: number; count: number; seed: number | null },
): Generator<number> {
  let pass = -1;
  let order: Uint32Array = own;
  for (let at = from; at < from + count; at++) {
    const now = Math.floor(at / own.length);
    if (now !== pass && seed !== null) {
      order = shuffledOrder(own.length, seed, now).map((i) => own[i] as number);
    }
    pass = now;
    yield order[at % own.length] as number;
  }
}

/** Merges lists so that each is spread evenly over the whole. */
function inTurns(lists: readonly (readonly number[])[]): number[] {
  return lists
    .flatMap((list, file) =>
      list.map((index, i) => ({ index, file, place: (i + 0.5) / list.length })),
    )
    .sort((a, b) => a.place - b.place || a.file - b.file)
    .map(({ index }) => index);
}
