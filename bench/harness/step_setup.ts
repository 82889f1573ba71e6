/** A training row's side of the harness: what it is asked to measure, and what its steps are run with. */
import type { Batch } from '../../lib/data/collate.ts';
import type { Trainer } from '../../lib/train/trainer.ts';
import type { Sizes } from './shapes.ts';
import type { SubjectOptions } from './subject.ts';
import type { Workload } from './types.ts';
import type { TimedSource } from './workload_batches.ts';

export interface StepRowInput extends SubjectOptions {
  readonly name: string;
  readonly workload: Workload;
  readonly dataFile?: string | undefined;
  /** Steps that are measured, and steps before them. */
  readonly steps: number;
  readonly warmup: number;
  /** Whether the products are timed too. */
  readonly roofline: boolean;
}

/** The trainer and data of a row's `total` steps, made in the row's own process. */
export interface StepSetup {
  readonly trainer: Trainer;
  readonly source: TimedSource<Sequences>;
  readonly sizes: Sizes;
  /** Name of the model, to be shown. */
  readonly name: string;
  readonly notes: readonly string[];
  readonly dispose: () => Promise<void>;
}

/** The part of a micro-batch that a row's sizes are read from. */
export type Sequences = Pick<Batch, 'inputIds' | 'positions' | 'cuSeqlens'>;
