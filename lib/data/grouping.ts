/**
 * Which examples make up which micro-batch. Without packing a micro-batch is `batchSize` examples; with it, `batchSize` rows of
 * up to `maxLength` tokens, each filled with whole examples in their order until the next does not fit. Filling in order (not
 * best fit) keeps the order of the shuffle; the room left at a row's end costs nothing, since rows are not padded.
 */
import { shuffledOrder } from './philox.ts';

export interface GroupOptions {
  batchSize: number;
  /** Tokens a row holds when packing; undefined: no packing. */
  packInto?: number;
}

/** Micro-batches as slices of the order: group g is order[starts[g]] to order[starts[g+1]-1]. */
export function groupStarts(
  order: Uint32Array,
  lengths: ArrayLike<number>,
  { batchSize, packInto }: GroupOptions,
): Uint32Array {
  const starts: number[] = [0];
  let rows = 0; // rows begun in this group
  let room = 0; // tokens left in the last of them
  for (let i = 0; i < order.length; i++) {
    const length = lengths[order[i] as number] as number;
    if (packInto !== undefined && length <= room) {
      room -= length;
      continue;
    }
    if (rows === batchSize) {
      starts.push(i);
      rows = 0;
    }
    rows++;
    room = packInto === undefined ? 0 : packInto - length;
  }
  starts.push(order.length);
  return Uint32Array.from(starts);
}

/** Micro-batches that are sorted by length together. */
const kBucketBatches = 50;
/** Sets the key of the second shuffle apart from the first one's. */
const kSecondShuffle = 2 ** 40;

export interface EpochOptions {
  batchSize: number;
  shuffle: boolean;
  seed: number;
  /** Sequences of like length share a micro-batch. */
  byLength: boolean;
}

/** The micro-batches of an epoch, each the indices of its examples. */
export function epochGroups(
  lengths: ArrayLike<number>,
  epoch: number,
  { batchSize, shuffle, seed, byLength }: EpochOptions,
): Uint32Array[] {
  const order = shuffle
    ? shuffledOrder(lengths.length, seed, epoch)
    : Uint32Array.from({ length: lengths.length }, (_, i) => i);
  if (byLength) {
    const lengthOf = (i: number): number => lengths[i] as number;
    for (let at = 0; at < order.length; at += kBucketBatches * batchSize) {
      // Stable: equal lengths keep the order of the shuffle.
      const bucket = order.subarray(at, at + kBucketBatches * batchSize);
      bucket.set(Array.from(bucket).sort((a, b) => lengthOf(b) - lengthOf(a)));
    }
  }
  const groups: Uint32Array[] = [];
  for (let at = 0; at < order.length; at += batchSize) {
    groups.push(order.slice(at, at + batchSize));
  }
  if (!(byLength && shuffle)) return groups;
  // Sorted buckets run from long to short, so the micro-batches are shuffled again, under a key of their own.
  const places = shuffledOrder(groups.length, (seed + kSecondShuffle) % 2 ** 53, epoch);
  return Array.from(places, (place) => groups[place] as Uint32Array);
}
