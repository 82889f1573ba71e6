/** What a trainer is given: the same for both kinds of model, but for data and loss. */
import type { TunedModel } from '../adapters/tuned_model.ts';
import type { LabelledBatch } from '../data/labelled_batches.ts';
import { SequenceClassifier } from '../models/index.ts';
import type { OptionsInput } from './options.ts';
import type { BatchSource, BestOptions, LossFunction, TrainCallback } from './types.ts';

/** What a Trainer needs, beside the options of optimisation and output. */
export interface TrainerOptions extends RunInput {
  tuned: TunedModel;
  data: BatchSource;
  /** Held-out examples; evaluated every `evalSteps` and at the end. */
  evalData?: BatchSource;
  /** A loss of the user's own instead of the cross-entropy and the regularizers. */
  loss?: LossFunction;
}

/** The same for a model with a classification or regression head. */
export interface ClassifierTrainerOptions extends RunInput {
  tuned: TunedModel<SequenceClassifier>;
  data: BatchSource<LabelledBatch>;
  /**
   * Held-out examples; evaluated every `evalSteps` and at the end. Their labels mean what those of `data` mean: made with the
   * same numLabels, problemType and labelNames.
   */
  evalData?: BatchSource<LabelledBatch>;
}

/** What runs of both kinds have. */
interface RunInput extends OptionsInput, BestOptions {
  callbacks?: readonly TrainCallback[];
  /** Stops after the micro-batch in flight; the run can be resumed. */
  signal?: AbortSignal;
}

/** Of either kind. */
export type AnyTrainerOptions = TrainerOptions | ClassifierTrainerOptions;

/** Whether it is a classifier that is tuned. */
export function isClassifierRun(input: AnyTrainerOptions): input is ClassifierTrainerOptions {
  return input.tuned.model instanceof SequenceClassifier;
}
