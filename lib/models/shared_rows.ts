/**
 * Rows that a causal model computes once for several segments. A row depends on the tokens up to it alone, so where segments have a
 * common prefix (a prompt template, a system prompt, the question of several answers) its rows are the same in every layer, and
 * only attention reads them once for each segment.
 */
import type { ModelBatch } from './batch.ts';

/** The M rows of a batch of N that are computed. */
export interface SharedRows {
  /** Index of the computed row that stands for each row. */
  readonly rowOf: Int32Array; // (N)
  /** Index in the batch of the first row that each computed row stands for. */
  readonly firstOf: Int32Array; // (M)
  /** First computed row of each segment's own, which are its last ones, and M. */
  readonly cuOwn: Int32Array; // (B+1)
}

/** The least share of the rows that must be saved to be worth the cost of reading through an index. */
const kLeastShare = 1 / 32;

/** Finds the rows to compute; null: all of them. The batch must have passed checkBatch. Rows of padding are never shared. */
export function sharedRows({
  inputIds,
  positions,
  cuSeqlens,
  lengths,
}: ModelBatch): SharedRows | null {
  const count = inputIds.length;
  const segments = cuSeqlens.length - 1;
  if (segments < 2) return null;
  const rowOf = new Int32Array(count);
  const firstOf = new Int32Array(count);
  const cuOwn = new Int32Array(segments + 1);
  let rows = 0;
  // A trie of the segments' prefixes: the computed row by the row before it and its id. First rows follow row -1.
  const children = new Map<number, number>();
  const width = inputIds.reduce((most, id) => Math.max(most, id), 0) + 1;
  for (let b = 0; b < segments; b++) {
    const start = cuSeqlens[b] as number;
    const stop = cuSeqlens[b + 1] as number;
    const padding = start + (lengths?.[b] ?? stop - start);
    let before = -1;
    for (let n = start; n < stop; n++) {
      const key = (before + 1) * width + (inputIds[n] as number);
      const known = n < padding ? children.get(key) : undefined;
      const same = known !== undefined && positions[firstOf[known] as number] === positions[n];
      const row = same ? known : rows++;
      if (!same) {
        firstOf[row] = n;
        if (n < padding) children.set(key, row);
      }
      rowOf[n] = row;
      before = row;
    }
    cuOwn[b + 1] = rows;
  }
  if (count - rows < kLeastShare * count) return null;
  return { rowOf, firstOf: firstOf.slice(0, rows), cuOwn };
}
