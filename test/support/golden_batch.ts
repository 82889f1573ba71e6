/** Golden batches (ids, mask and unshifted labels, padded on the right) as micro-batches of the library. */
import type { Batch } from '../../lib/data/collate.ts';
import type { Positions } from '../../lib/data/select_rows.ts';
import { causalLm } from '../../lib/tasks/causal_lm.ts';
import type { Window } from '../../lib/train/window.ts';
import { type GoldenArray, goldenArray } from './golden.ts';

const kIgnored = -100;

export interface PaddedBatch {
  readonly batch: Batch;
  readonly rows: number; // B
  readonly length: number; // T
  /** Indices in (B*T) of the rows that are no padding. */
  readonly real: Int32Array;
}

/** A padded batch from ids, mask and labels (B,T) of any integer type. */
function paddedBatch(ids: GoldenArray, mask: GoldenArray, labels: GoldenArray): PaddedBatch {
  const [rows, length] = ids.shape as [number, number];
  const inputIds = Int32Array.from(ids.data as Int32Array, Number);
  const masked = Int32Array.from(mask.data as Int32Array, Number);
  const wanted = Int32Array.from(labels.data as Int32Array, Number);
  const targets = Int32Array.from(wanted, (_, at) =>
    (at + 1) % length === 0 ? kIgnored : (wanted[at + 1] as number),
  );
  const lengths = Int32Array.from({ length: rows }, (_, b) =>
    masked.subarray(b * length, (b + 1) * length).reduce((sum, one) => sum + one, 0),
  );
  return {
    rows,
    length,
    real: Int32Array.from(Array.from(masked.keys()).filter((at) => masked[at] === 1)),
    batch: {
      inputIds,
      positions: Int32Array.from(inputIds, (_, at) => at % length),
      cuSeqlens: Int32Array.from({ length: rows + 1 }, (_, b) => b * length),
      targets,
      lengths,
    },
  };
}

/** The micro-batch from the arrays of a golden file with these names. */
export function goldenBatch(
  arrays: Map<string, GoldenArray>,
  names: { ids: string; mask: string; labels: string },
): PaddedBatch {
  return paddedBatch(
    goldenArray(arrays, names.ids),
    goldenArray(arrays, names.mask),
    goldenArray(arrays, names.labels),
  );
}

/** The window that consists of a single micro-batch. */
export function windowOf(batch: Batch, positions: Positions = 'supervised'): Window<Batch> {
  const chosen = causalLm.select(batch, { positions });
  return {
    batches: [{ ...chosen, index: 0 }],
    totals: chosen.counts,
    after: { epoch: 0, microBatch: 1 },
    epoch: 1,
  };
}
