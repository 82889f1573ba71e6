/** Input of a training row, and the setup that its steps run with. */
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
  /** Number of measured steps, and of warm-up steps before them. */
  readonly steps: number;
  readonly warmup: number;
  /** Whether to time the matrix products for the roofline, too. */
  readonly roofline: boolean;
}

/** The trainer and data for all steps of a row, created in the row's own process. */
export interface StepSetup {
  readonly trainer: Trainer;
  readonly source: TimedSource<Sequences>;
  readonly sizes: Sizes;
  /** Name of the model for the report. */
  readonly name: string;
  readonly notes: readonly string[];
  readonly dispose: () => Promise<void>;
}

/** The part of a micro-batch that determines the sizes of a step. */
export type Sequences = Pick<Batch, 'inputIds' | 'positions' | 'cuSeqlens'>;
