/**
 * Grouping of examples into micro-batches. Without packing a micro-batch is `batchSize` examples; with it, `batchSize` rows of up
 * to `packInto` tokens, each filled with whole examples in their order until the next does not fit. Filling in order (not by best
 * fit) keeps the shuffled order; unused room at the end of a row costs nothing, since rows are not padded.
 */
import { mixedOrder } from './mixture.ts';
import { shuffledOrder } from './philox.ts';
import type { RowFile } from './rows.ts';

export interface GroupOptions {
  readonly batchSize: number;
  /** Number of tokens that a row holds when packing; undefined: no packing. */
  readonly packInto?: number;
}

/** Options for ordering and grouping the examples of an epoch. */
export interface OrderOptions extends GroupOptions {
  /** Whether to shuffle; false: the rows' own order in every epoch. */
  readonly shuffle: boolean;
  readonly seed: number;
  /** Whether sequences of similar length share a micro-batch. Default false. */
  readonly byLength?: boolean;
  /** Files with weights, which an epoch is mixed from. Default: every example comes once in an epoch. */
  readonly files?: readonly RowFile[];
}

/** Micro-batches as slices of the order: group g is order[starts[g]] to order[starts[g+1]-1]. */
export interface EpochOrder {
  readonly order: Uint32Array;
  readonly starts: Uint32Array;
}

/** Indices at which the micro-batches of an order begin, followed by its length. */
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

/** Number of micro-batches that are sorted by length together. */
const kBucketBatches = 50;
/** Offset that sets the key of the second shuffle apart from that of the first. */
const kSecondShuffle = 2 ** 40;

/**
 * The micro-batches of an epoch, a pure function of the arguments.
 * @param kept indices of the examples that are used
 * @param lengths tokens of every example, by index
 */
export function epochOrder(
  kept: Uint32Array,
  lengths: ArrayLike<number>,
  epoch: number,
  options: OrderOptions,
): EpochOrder {
  const { shuffle, seed, byLength = false, batchSize, files } = options;
  const examples = files === undefined ? kept : mixedOrder(kept, files, { epoch, shuffle, seed });
  const order = shuffle
    ? shuffledOrder(examples.length, seed, epoch).map((i) => examples[i] as number)
    : examples.slice();
  if (byLength) sortBuckets(order, lengths, kBucketBatches * batchSize);
  const starts = groupStarts(order, lengths, options);
  // Sorted buckets run from long to short, so the micro-batches are shuffled again, under a key of their own.
  return byLength && shuffle
    ? shuffleGroups({ order, starts }, (seed + kSecondShuffle) % 2 ** 53, epoch)
    : { order, starts };
}

/** Sorts each run of `bucketSize` examples from long to short. Stable: equal lengths keep their order. */
function sortBuckets(order: Uint32Array, lengths: ArrayLike<number>, bucketSize: number): void {
  const lengthOf = (i: number): number => lengths[i] as number;
  for (let at = 0; at < order.length; at += bucketSize) {
    const bucket = order.subarray(at, at + bucketSize);
    bucket.set(Array.from(bucket).sort((a, b) => lengthOf(b) - lengthOf(a)));
  }
}

function shuffleGroups({ order, starts }: EpochOrder, seed: number, epoch: number): EpochOrder {
  const shuffled = new Uint32Array(order.length);
  const newStarts = new Uint32Array(starts.length);
  shuffledOrder(starts.length - 1, seed, epoch).forEach((g, place) => {
    const group = order.subarray(starts[g], starts[g + 1]);
    const start = newStarts[place] as number;
    shuffled.set(group, start);
    newStarts[place + 1] = start + group.length;
  });
  return { order: shuffled, starts: newStarts };
}
