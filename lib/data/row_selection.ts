/**
 * Which rows of a micro-batch count for what. Row t predicts `targets[t]`; selections never cross segments, and padding
 * is told by lengths, never by an id.
 */
import { type Batch, kNotSupervised } from './collate.ts';

/** Rows that the regularizers look at, see {@link selectedRows}. */
export type RowSelection = 'supervised' | 'non_padding' | 'label_aligned';

/** Real rows of segment `b`: [begin, end), padding left out. */
export function realRows(
  { cuSeqlens, lengths }: Batch,
  b: number,
): { begin: number; end: number; tokens: number } {
  const begin = cuSeqlens[b] as number;
  const tokens = lengths?.[b] ?? (cuSeqlens[b + 1] as number) - begin;
  return { begin, end: begin + tokens, tokens };
}

/** Rows of the task loss, ascending. */
export function supervisedRows({ targets }: Batch): Int32Array {
  return Int32Array.from(indicesWhere(targets.length, (row) => targets[row] !== kNotSupervised));
}

/**
 * Rows of the regularizers, ascending. `supervised`: those of the task. `non_padding`: every real row, the last of each
 * segment included. `label_aligned`: the rows whose own id is supervised, so one row after each of the task's.
 */
export function selectedRows(batch: Batch, positions: RowSelection): Int32Array {
  if (positions === 'supervised') return supervisedRows(batch);
  const rows: number[] = [];
  for (let b = 0; b + 1 < batch.cuSeqlens.length; b++) {
    const { begin, end } = realRows(batch, b);
    for (let row = begin; row < end; row++) {
      const aligned = row > begin && batch.targets[row - 1] !== kNotSupervised;
      if (positions === 'non_padding' || aligned) rows.push(row);
    }
  }
  return Int32Array.from(rows);
}

/** Rows of the task or the regularizers, with the masks of both. */
export interface RowSets {
  readonly rows: Int32Array; // (M) of the batch, ascending
  /** (M): the id to predict, kNotSupervised for a row without task term. */
  readonly targets: Int32Array;
  /** (M): 1 where the regularizers count; null: everywhere. */
  readonly regularized: Uint8Array | null;
  /** Places in `rows` where the regularizers count; null: all. */
  readonly regularizedPlaces: Int32Array | null;
}

export function rowSets(batch: Batch, positions: RowSelection | null): RowSets {
  const task = supervisedRows(batch);
  const targetsOf = (rows: Int32Array) =>
    Int32Array.from(rows, (row) => batch.targets[row] as number);
  if (positions === null || positions === 'supervised') {
    return { rows: task, targets: targetsOf(task), regularized: null, regularizedPlaces: null };
  }
  const selected = new Set(selectedRows(batch, positions));
  const rows = Int32Array.from([...new Set([...task, ...selected])].sort((a, b) => a - b));
  const regularized = Uint8Array.from(rows, (row) => (selected.has(row) ? 1 : 0));
  return {
    rows,
    targets: targetsOf(rows),
    regularized,
    regularizedPlaces: Int32Array.from(indicesWhere(rows.length, (at) => regularized[at] === 1)),
  };
}

function indicesWhere(length: number, keep: (index: number) => boolean): number[] {
  const indices: number[] = [];
  for (let i = 0; i < length; i++) if (keep(i)) indices.push(i);
  return indices;
}
