/** A pass over one micro-batch: what it is computed with, and what all ways of computing it share. */
import type { TermSums } from '../losses/term_sums.ts';
import type { LossPass, RowCounts, TaskLoss } from '../tasks/task.ts';
import type { WindowBatch } from './window.ts';

/** What a micro-batch is computed with, beside itself. */
export interface PassInput extends Pick<LossPass, 'weights' | 'totals' | 'at'> {
  readonly totals: RowCounts;
  /** Where the values of its terms are counted in. */
  readonly sums: TermSums;
}

/** Whether no term reads any row of a micro-batch. */
export function isEmpty({ selected }: WindowBatch): boolean {
  return selected !== null && selected.rows.length === 0;
}

/** Gives back what the teacher made for a micro-batch. */
export function forgetTeacher(micro: WindowBatch, loss: TaskLoss): void {
  if (micro.teacher !== null) loss.forget(micro.teacher);
  micro.teacher = null;
}
