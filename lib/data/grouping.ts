/**
 * Which examples make up which micro-batch. Without packing a micro-batch is `batchSize` examples; with it, `batchSize` rows of
 * up to `maxLength` tokens, each filled with whole examples in their order until the next does not fit. Filling in order (not
 * best fit) keeps the order of the shuffle; the room left at a row's end costs nothing, since rows are not padded.
 */

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
