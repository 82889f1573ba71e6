/** A batch as a model takes it: unpadded rows of several segments. */
import { bounds } from './kv_cache.ts';

/** A batch of B segments one after the other, N rows in all. See `collate`. */
export interface ModelBatch {
  readonly inputIds: Int32Array; // (N)
  readonly positions: Int32Array; // (N)
  readonly cuSeqlens: Int32Array; // (B+1)
  /** Valid rows of each segment, where segments are padded on the right; the hidden states of padding are meaningless. */
  readonly lengths?: Int32Array; // (B)
  /** The text of a pair that each row belongs to, for models with token types (BERT). Default 0. */
  readonly tokenTypeIds?: Int32Array; // (N)
}

/** A batch with a segment for each list of ids, whose positions count from 0. */
export function batchOf(lists: readonly ArrayLike<number>[]): ModelBatch {
  const cuSeqlens = bounds(lists.map(({ length }) => length));
  const total = cuSeqlens[lists.length] as number;
  const [inputIds, positions] = [new Int32Array(total), new Int32Array(total)];
  lists.forEach((ids, b) => {
    const begin = cuSeqlens[b] as number;
    inputIds.set(ids, begin);
    for (let t = 0; t < ids.length; t++) positions[begin + t] = t;
  });
  return { inputIds, positions, cuSeqlens };
}
