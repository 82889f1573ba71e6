// Selection of the rows of a micro-batch that the task loss and the regularizers use. Rows are unpadded unless `lengths` gives the
// number of valid ones of each segment; targets are shifted already (targets[n] is the id that row n must predict).
import { ArgumentError } from '../errors.ts';
import { kIgnoredTarget } from '../ignored_target.ts';
import { shown } from '../shown.ts';

/**
 * The rows of the regularizers. `supervised`: the rows of the task loss. `non_padding`: the rows of all tokens, as in the paper's
 * text. `label_aligned`: rows whose own label is supervised, as in the published code (not shifted, so one row late).
 */
export type Positions = 'supervised' | 'non_padding' | 'label_aligned';

/** The fields of a batch that decide which rows a loss uses. */
export interface RowsOfBatch {
  /** (N). */
  targets: Int32Array;
  /** (B+1): first row of each segment, and N. */
  cuSeqlens: Int32Array;
  /** (B): valid rows of each segment, for segments padded on the right. */
  lengths?: Int32Array | undefined;
  /** (N) unshifted labels, for label_aligned where a segment's first label is supervised (the shift drops it). */
  labels?: Int32Array | undefined;
}

/** The rows of a micro-batch that some term uses. */
export interface SelectedRows {
  /** (M): rows of the task loss or of the regularizers, ascending. */
  rows: Int32Array;
  /** (M): targets of those rows. */
  targets: Int32Array;
  /** (M): 1 where the row is one of the regularizers'; null where all are. */
  regularized: Uint8Array | null;
  /** (S): the regularizers' rows, as indices into `rows`. */
  regularizedRows: Int32Array;
  /** Rows of the task loss. */
  supervised: number;
  /** N: rows of the batch. */
  batchRows: number;
}

/** Selects the rows that the task loss or the regularizers use. */
export function selectRows(batch: RowsOfBatch, positions: Positions = 'supervised'): SelectedRows {
  const { targets } = batch;
  const inRegularizers = regularizerMask(batch, positions);
  const rows: number[] = [];
  const regularizedRows: number[] = [];
  let supervised = 0;
  for (let n = 0; n < targets.length; n++) {
    const hasTarget = targets[n] !== kIgnoredTarget;
    if (hasTarget) supervised++;
    if (inRegularizers[n]) regularizedRows.push(rows.length);
    if (hasTarget || inRegularizers[n]) rows.push(n);
  }
  const same = regularizedRows.length === rows.length;
  return {
    rows: Int32Array.from(rows),
    targets: Int32Array.from(rows, (n) => targets[n] as number),
    regularized: same ? null : Uint8Array.from(rows, (n) => inRegularizers[n] as number),
    regularizedRows: Int32Array.from(regularizedRows),
    supervised,
    batchRows: targets.length,
  };
}

function regularizerMask(batch: RowsOfBatch, positions: Positions): Uint8Array {
  const { targets, cuSeqlens, lengths, labels } = batch;
  const rows = targets.length;
  if (cuSeqlens[cuSeqlens.length - 1] !== rows) {
    throw new ArgumentError(
      `selectRows: cuSeqlens must end at the batch's ${rows} rows, got ${cuSeqlens[cuSeqlens.length - 1]}`,
    );
  }
  const mask = new Uint8Array(rows);
  for (let b = 0; b + 1 < cuSeqlens.length; b++) {
    const start = cuSeqlens[b] as number;
    const end = lengths ? start + (lengths[b] as number) : (cuSeqlens[b + 1] as number);
    for (let n = start; n < end; n++) {
      mask[n] = Number(isRegularized(positions, n, start, targets, labels));
    }
  }
  return mask;
}

function isRegularized(
  positions: Positions,
  n: number,
  start: number,
  targets: Int32Array,
  labels: Int32Array | undefined,
): boolean {
  switch (positions) {
    case 'supervised':
      return targets[n] !== kIgnoredTarget;
    case 'non_padding':
      return true;
    case 'label_aligned':
      if (labels) return labels[n] !== kIgnoredTarget;
      return n > start && targets[n - 1] !== kIgnoredTarget;
    default:
      throw new ArgumentError(
        `selectRows: positions must be supervised, non_padding or label_aligned, got ${shown(positions)}`,
      );
  }
}
