/**
 * Forwards of many sequences, in parts of whole sequences. A part is small enough for each of its ops to end soon, so that an abort is
 * heard, and for the engine's queue; a sequence is never cut, since its bits would be others.
 */
import { withAbort } from '../abort.ts';
import { concat } from '../ops/index.ts';
import { synchronize } from '../runtime.ts';
import { computeOwned, type Tensor } from '../tensor.ts';
import type { ModelBatch } from './batch.ts';

/** Most rows of a part, unless a single sequence has more. */
export const kPartRows = 8192;

/** Divides sequences, of which each has so many rows, into consecutive parts; returns the end of each. */
export function partEnds(rows: readonly number[], most = kPartRows): number[] {
  const ends: number[] = [];
  let sum = 0;
  rows.forEach((own, i) => {
    if (i > 0 && sum + own > most) {
      ends.push(i);
      sum = 0;
    }
    sum += own;
  });
  if (rows.length > 0) ends.push(rows.length);
  return ends;
}

/** A forward in parts. */
export interface PartwiseForward {
  /** Rows whose hidden states are wanted, in ascending order. */
  readonly rows: Int32Array;
  /** Whether the forward computes rows once that several sequences begin with. */
  readonly sharesPrefixes: boolean;
  readonly signal: AbortSignal | undefined;
  /** Enqueues the forward of a part, and returns the hidden states (rows,C) of some of its rows. Nothing is recorded for backward. */
  forward(batch: ModelBatch, rows: Int32Array): Tensor;
}

/**
 * The hidden states of chosen rows of a batch, which belong to the caller.
 * @returns (rows,C)
 * @throws the signal's reason
 */
export async function hiddenInParts(
  batch: ModelBatch,
  { rows, sharesPrefixes, signal, forward }: PartwiseForward,
): Promise<Tensor> {
  const compute = (body: () => Tensor): Tensor => computeOwned(() => withAbort(signal, body));
  const ends = partEnds(newRows(batch, sharesPrefixes));
  if (ends.length <= 1) return compute(() => forward(batch, rows));
  const found: Tensor[] = [];
  try {
    let [first, next] = [0, 0];
    for (const end of ends) {
      const [begin, stop] = [batch.cuSeqlens[first] as number, batch.cuSeqlens[end] as number];
      const wanted = next;
      while (next < rows.length && (rows[next] as number) < stop) next++;
      const own = rows.subarray(wanted, next).map((row) => row - begin);
      if (own.length > 0) found.push(compute(() => forward(segmentsOf(batch, first, end), own)));
      first = end;
      await synchronize();
      signal?.throwIfAborted();
    }
    return compute(() => concat(found, 0));
  } finally {
    for (const part of found) part.dispose();
  }
}

/** The number of rows of each segment; where prefixes are shared, of those that the segment before does not begin with as well. */
function newRows({ inputIds, cuSeqlens }: ModelBatch, sharesPrefixes: boolean): number[] {
  return Array.from({ length: cuSeqlens.length - 1 }, (_, b) => {
    const [begin, end] = [cuSeqlens[b] as number, cuSeqlens[b + 1] as number];
    if (!sharesPrefixes || b === 0) return end - begin;
    const before = cuSeqlens[b - 1] as number;
    let same = 0;
    while (before + same < begin && inputIds[before + same] === inputIds[begin + same]) same++;
    return Math.max(0, end - begin - same);
  });
}

/** The segments [first, end) of a batch as one of its own. */
function segmentsOf(batch: ModelBatch, first: number, end: number): ModelBatch {
  const { inputIds, positions, cuSeqlens, lengths, tokenTypeIds } = batch;
  const [begin, stop] = [cuSeqlens[first] as number, cuSeqlens[end] as number];
  return {
    inputIds: inputIds.subarray(begin, stop),
    positions: positions.subarray(begin, stop),
    cuSeqlens: cuSeqlens.subarray(first, end + 1).map((at) => at - begin),
    ...(lengths && { lengths: lengths.subarray(first, end) }),
    ...(tokenTypeIds && { tokenTypeIds: tokenTypeIds.subarray(begin, stop) }),
  };
}
