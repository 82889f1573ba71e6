/** The input of a trainer, which is the same for every task except for the model and its data. */
import type { TunedModel } from '../adapters/tuned_model.ts';
import type { BatchSource } from '../data/batch_source.ts';
import type { LabelledBatch } from '../data/labelled_batches.ts';
import type { Seq2SeqExamples } from '../data/seq2seq_example.ts';
import type { Term } from '../losses/term.ts';
import type { Model, Seq2SeqLM, SequenceClassifier } from '../models/index.ts';
import { type CallTable, kCall, kindsOf, listOf, withMethods } from '../options/call.ts';
import type { Tokenizer } from '../text/tokenizer.ts';
import type { RunSettings } from './resolve_run.ts';
import type { SamplePrompts } from './samples.ts';
import { trainerOptions } from './schema.ts';
import type { AfterBackward, LossFunction, TrainCallback } from './types.ts';

/** Input of a Trainer for a causal language model, with the options of optimisation and output. */
export interface TrainerOptions extends RunInput {
  tuned: TunedModel;
  data: BatchSource;
  /** Held-out examples, evaluated every `evalSteps` and at the end. */
  evalData?: BatchSource;
  /** A loss of the caller's own, which replaces the cross-entropy and the regularizers. */
  loss?: LossFunction;
}

/** Input of a Trainer for an encoder-decoder, with the options of optimisation and output. */
export interface Seq2SeqTrainerOptions extends RunInput {
  tuned: TunedModel<Seq2SeqLM>;
  data: BatchSource<Seq2SeqExamples>;
  /** Held-out examples, evaluated every `evalSteps` and at the end. */
  evalData?: BatchSource<Seq2SeqExamples>;
  /** A loss of the caller's own, which replaces the cross-entropy and the regularizers; its rows are those of the decoder. */
  loss?: LossFunction<Seq2SeqExamples>;
}

/** Input of a Trainer for a model with a classification or regression head, with the options of optimisation and output. */
export interface ClassifierTrainerOptions extends RunInput {
  tuned: TunedModel<SequenceClassifier>;
  data: BatchSource<LabelledBatch>;
  /**
   * Held-out examples, evaluated every `evalSteps` and at the end. Their labels must have the same meaning as those of `data`,
   * so create them with the same numLabels, problemType and labelNames.
   */
  evalData?: BatchSource<LabelledBatch>;
  /** A classifier's loss cannot be replaced, so there is no such option; `terms` can be added to it. */
  loss?: never;
}

/** Input that runs of all tasks have in common. */
interface RunInput extends RunSettings {
  /**
   * Terms of the loss in addition to those of the task, made by {@link defineTerm}. The caller defines their
   * weights' schedules.
   */
  terms?: readonly Term[];
  /** Function that is called when all gradients of a step have been computed, before they are measured and clipped. */
  afterBackward?: AfterBackward;
  /**
   * Prompts that the model answers at each evaluation, each token the most likely one. The answers are an event and lines of
   * run/samples.jsonl; training is the same, bit for bit, without them. They need `evalData`. Default none.
   */
  samplePrompts?: SamplePrompts;
  /**
   * The model's tokenizer, whose files with the chat template are written beside the result. Default: that of the data, if they are
   * Batches, Seq2SeqBatches or LabelledBatches.
   */
  tokenizer?: Tokenizer;
  callbacks?: readonly TrainCallback[];
  /** Signal that stops the run after the current micro-batch; the run can be resumed. */
  signal?: AbortSignal;
}

/** The input of a run of any task, as the trainer uses it; the task of the model checks the rest. */
export interface AnyTrainerOptions extends RunInput {
  tuned: TunedModel<Model>;
  data: BatchSource<unknown>;
  evalData?: BatchSource<unknown>;
  loss?: LossFunction<never>;
}

const kSource = withMethods('a source of micro-batches, such as Batches', 'batches', 'batchCount');

/** The kinds of the input: objects and functions, and the options of tables. */
export const inputTable: CallTable<AnyTrainerOptions> = {
  tuned: withMethods('an AdapterModel or a FullModel', 'parameters', 'withTeacher'),
  data: kSource,
  evalData: kSource,
  loss: kCall.function,
  regularizers: kCall.object,
  terms: listOf(
    withMethods('a term', 'weightAt', 'value'),
    'a list of terms that defineTerm() returned',
  ),
  afterBackward: kCall.function,
  samplePrompts: kCall.object,
  tokenizer: withMethods('a Tokenizer', 'savePretrained'),
  callbacks: listOf(kCall.function, 'a list of functions'),
  signal: kCall.signal,
  ...kindsOf(trainerOptions),
};
