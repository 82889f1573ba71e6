/** The computation of one micro-batch: its inputs, and the functions that all ways of computing it share. */
import type { TermSums } from '../losses/term_sums.ts';
import type { LossPass, RowCounts, TaskLoss } from '../tasks/task.ts';
import type { WindowBatch } from './window.ts';

/** The inputs of a pass over a micro-batch, in addition to the micro-batch itself. */
export interface PassInput extends Pick<LossPass, 'weights' | 'totals' | 'at'> {
  readonly totals: RowCounts;
  /** The sums to which the values of the loss terms are added. */
  readonly sums: TermSums;
}

/** Whether a micro-batch has no row that any term reads. */
export function isEmpty({ selected }: WindowBatch): boolean {
  return selected !== null && selected.rows.length === 0;
}

/** Releases the teacher's outputs for a micro-batch. */
export function releaseTeacher(micro: WindowBatch, loss: TaskLoss): void {
  if (micro.teacher !== null) loss.releaseTeacher(micro.teacher);
  micro.teacher = null;
}
