/** The input of a trainer: the same for every task, but for the model and its data. */
import type { TunedModel } from '../adapters/tuned_model.ts';
import type { BatchSource } from '../data/batch_source.ts';
import type { LabelledBatch } from '../data/labelled_batches.ts';
import type { Seq2SeqExamples } from '../data/seq2seq_example.ts';
import type { Term } from '../losses/term.ts';
import type { Model, Seq2SeqLM, SequenceClassifier } from '../models/index.ts';
import type { OptionsInput } from './options.ts';
import type { AfterBackward } from './step.ts';
import type { BestOptions, LossFunction, TrainCallback } from './types.ts';

/** What a Trainer needs for a causal language model, beside the options of optimisation and output. */
export interface TrainerOptions extends RunInput {
  tuned: TunedModel;
  data: BatchSource;
  /** Held-out examples; evaluated every `evalSteps` and at the end. */
  evalData?: BatchSource;
  /** A loss of the user's own instead of the cross-entropy and the regularizers. */
  loss?: LossFunction;
}

/** The same for an encoder-decoder. */
export interface Seq2SeqTrainerOptions extends RunInput {
  tuned: TunedModel<Seq2SeqLM>;
  data: BatchSource<Seq2SeqExamples>;
  /** Held-out examples; evaluated every `evalSteps` and at the end. */
  evalData?: BatchSource<Seq2SeqExamples>;
  /** A loss of the user's own instead of the cross-entropy and the regularizers; its rows are those of the decoder. */
  loss?: LossFunction<Seq2SeqExamples>;
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
  /** A classifier has no loss of one's own: `terms` stand beside its task's. */
  loss?: never;
}

/** What runs of all tasks have. */
interface RunInput extends OptionsInput, BestOptions {
  /** Terms of the loss beside those of the task, made by {@link defineTerm}. Their weights are the caller's to schedule. */
  terms?: readonly Term[];
  /** Called when all gradients of a step are there, before they are measured and clipped. */
  afterBackward?: AfterBackward;
  callbacks?: readonly TrainCallback[];
  /** Stops after the micro-batch in flight; the run can be resumed. */
  signal?: AbortSignal;
}

/** The input of a run of any task, as the trainer sees it: the task of the model knows the rest. */
export interface AnyTrainerOptions extends RunInput {
  tuned: TunedModel<Model>;
  data: BatchSource<unknown>;
  evalData?: BatchSource<unknown>;
  loss?: LossFunction<never>;
}
