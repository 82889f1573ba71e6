/**
 * The input and output of a training run: options under the names of transformers (declared in schema.ts), a record for each
 * step, and events. The command line is a thin layer over these types, and nothing is computed here.
 */
import type { NamedTensor } from '../adapters/tuned_model.ts';
import type { Batch } from '../data/collate.ts';
import type { MetricName } from '../data/glue.ts';
import type { Evaluation } from '../eval/types.ts';
import type { StepOfRun } from '../losses/term.ts';
import type { InputOf } from '../options/option.ts';
import type { Tensor } from '../tensor.ts';
import type { BatchPlan } from './memory_plan.ts';
import type { Sample } from './samples.ts';
import type {
  bestOptions,
  noteOptions,
  optimizationOptions,
  outputOptions,
  preparationOptions,
  resourceOptions,
} from './schema.ts';

export type { MethodName } from '../adapters/methods/registry.ts';
export type { BatchSource } from '../data/batch_source.ts';
export type { ClassifierEvaluation, EvaluationResult, ExampleResult } from '../eval/types.ts';
export type { Sample, SamplePrompts } from './samples.ts';
export { OPTIMIZER_NAMES, type OptimizerName } from './schema.ts';
export type { Batch };

/** Options of the optimisation, under the names of transformers. */
export interface OptimizationOptions extends InputOf<typeof optimizationOptions> {}

/** The option that determines which of the evaluated steps a run exports. */
export interface BestOptions extends InputOf<typeof bestOptions> {}

/** Options that determine where and how often a run is written; without `output` nothing is written at all. */
export interface OutputOptions
  extends InputOf<typeof outputOptions>,
    InputOf<typeof preparationOptions>,
    InputOf<typeof noteOptions> {}

/** Options that determine the memory and time that a run uses. */
export interface ResourceOptions extends InputOf<typeof resourceOptions> {}

/** The result of a loss of the caller's own: the mean over the micro-batch's supervised rows, and metrics to report. */
export interface LossResult {
  /** Loss as a scalar on the tape. */
  readonly loss: Tensor;
  /** Detached scalars to report in the step's record under `custom`, averaged over the window by each micro-batch's share. */
  readonly metrics?: Readonly<Record<string, Tensor>>;
}

/** The values that a loss of the caller's own can use; the rows of `hidden` are those of the batch. */
export interface LossContext<B = Batch> {
  /** The micro-batch; for an encoder-decoder, the rows are those of `batch.decoder`. */
  readonly batch: B;
  readonly hidden: Tensor; // hidden states (N,C) after the final norm, on the tape
  readonly headWeight: Tensor; // weight (V,C) of the student's head
  /**
   * Weight (V,C) of the teacher's head, which is frozen where the head is trained or saved with the adapter, else the same
   * tensor as headWeight.
   */
  readonly teacherHeadWeight: Tensor;
  readonly logitSoftcap: number | null;
  /** Computes the teacher's hidden states (N,C) at the first call, without gradient. */
  readonly teacherHidden: () => Tensor;
  readonly step: number;
  readonly totalSteps: number;
  /** Number of supervised rows in this micro-batch; `windowSupervisedRows` is that of the whole accumulation window. */
  readonly supervisedRows: number;
  readonly windowSupervisedRows: number;
}

/**
 * Function that is called once for each micro-batch with a supervised row; others are skipped. Its result has the weight
 * supervisedRows / windowSupervisedRows in the step's loss. A tensor that is made without naming a device is on the model's
 * device. All tensors that the function makes are freed when it returns, as in a `scope()`; use `keep()` for a tensor that
 * must outlive the call. For an async function, both the default device and the release apply only to tensors made before its
 * first await.
 */
export type LossFunction<B = Batch> = (context: LossContext<B>) => LossResult | Promise<LossResult>;

/** Function that is called when all gradients of a step have been computed, before they are measured and clipped. */
export type AfterBackward = (
  at: StepOfRun & { readonly parameters: readonly NamedTensor[] },
) => void | Promise<void>;

/** The loss of a step and its parts, which are those of the whole window. */
export interface StepLosses {
  /** Weighted sum of the task's loss and the terms. */
  readonly loss: number;
  readonly taskLoss: number;
  /** Unweighted values and weights of the terms by key; a value is null where the term is undefined for the window. */
  readonly terms: Readonly<
    Record<string, { readonly value: number | null; readonly weight: number }>
  >;
  /** Metrics reported by the caller's own loss. */
  readonly custom?: Readonly<Record<string, number>> | undefined;
}

/** The record of a step, one line of run/metrics.jsonl. */
export interface StepRecord extends StepLosses {
  /** Number of the step, counted from 1. */
  readonly step: number;
  /** Epochs completed after this step, as a fraction. */
  readonly epoch: number;
  /** Norm of the gradients before clipping. */
  readonly gradNorm: number;
  readonly learningRate: number;
  /** Number of tokens in the window, without padding; `supervisedTokens` counts the supervised ones. */
  readonly tokens: number;
  readonly supervisedTokens: number;
  readonly tokensPerSecond: number;
  /** Seconds since the run began, including the time before it was resumed. */
  readonly elapsedSeconds: number;
  readonly peakRssBytes: number;
}

/**
 * The plan of a run, known before its first step. Counts and the memory that stays allocated throughout the run are exact. The
 * additional memory and the time of a step are measured on one micro-batch (`--dry-run`, `Trainer.plan({ measure: true })`) and
 * are null otherwise.
 */
export interface RunPlan {
  readonly totalSteps: number;
  readonly warmupSteps: number;
  /** Number of micro-batches in the first epoch. */
  readonly microBatchesPerEpoch: number;
  readonly trainableParameters: number;
  readonly baseParameters: number;
  readonly memory: {
    readonly baseBytes: number;
    readonly teacherBytes: number;
    readonly adapterBytes: number;
    /** Bytes of the optimiser's moments and the gradients. */
    readonly optimizerBytes: number;
    /** Peak bytes of a micro-batch's forward and backward pass, in addition to the memory that stays allocated. */
    readonly activationBytes: number | null;
    /**
     * Bytes of all tensors and packed weights, as counted by the engine; the process also needs memory for Node, code
     * and scratch.
     */
    readonly totalBytes: number | null;
  };
  /** The plan chosen for the measured micro-batch under the memory budget; null without a budget. */
  readonly memoryPlan: BatchPlan | null;
  /** Number of tokens in the measured micro-batch; a longer one needs more memory. */
  readonly measuredTokens: number | null;
  readonly secondsPerStep: number | null;
}

/** The reason why a run ended. */
export type StopReason = 'completed' | 'aborted';

/** An event that a run reports while it is in progress; its `type` distinguishes the kinds. */
export type TrainEvent =
  | { readonly type: 'start'; readonly plan: RunPlan; readonly startStep: number }
  /** The event after every optimiser step. */
  | {
      readonly type: 'step';
      readonly record: StepRecord;
      readonly totalSteps: number;
      readonly secondsLeft: number;
    }
  /** The event every `loggingSteps` steps, with the record of the step, for progress lines. */
  | {
      readonly type: 'log';
      readonly record: StepRecord;
      readonly totalSteps: number;
      readonly secondsLeft: number;
    }
  | {
      readonly type: 'evaluation';
      readonly step: number;
      readonly result: Evaluation;
    }
  /** The event after an evaluation, with the answers to `samplePrompts`. */
  | { readonly type: 'samples'; readonly step: number; readonly samples: readonly Sample[] }
  /** The event during an evaluation, with the number of examples evaluated so far. */
  | { readonly type: 'evaluating'; readonly step: number; readonly examples: number }
  | { readonly type: 'checkpoint'; readonly step: number; readonly path: string }
  /** The events when a run pauses between two steps and when it continues; see `Trainer.pause`. */
  | { readonly type: 'paused' | 'resumed'; readonly step: number }
  /** The event for a warning: `code` is stable, for programs; `message` is for people. */
  | { readonly type: 'warning'; readonly code: string; readonly message: string }
  | { readonly type: 'end'; readonly reason: StopReason; readonly result: TrainResult };

/** A warning for the user, as an event. */
export type Warning = Extract<TrainEvent, { type: 'warning' }>;

/** The result of a run. */
export interface TrainResult {
  readonly reason: StopReason;
  /** Number of completed optimiser steps, including those before the run was resumed. */
  readonly steps: number;
  readonly elapsedSeconds: number;
  readonly last: StepRecord | null;
  /** Evaluation of the exported parameters, which are those of the last or of the best step. */
  readonly evaluation: Evaluation | null;
  /** The step of the exported parameters, where the best step is kept; else null. */
  readonly best: BestStep | null;
  /** Path of the exported adapter's or model's folder; null without `output`. */
  readonly output: string | null;
  /** Path of the last checkpoint's folder; null without `output` and before the first step. */
  readonly checkpoint: string | null;
}

/** The evaluated step with the best value of the metric so far. */
export interface BestStep {
  readonly step: number;
  readonly metric: MetricName;
  readonly value: number;
}

/** Function that is called with each event before the iterator returns it; callbacks run in the given order, each awaited. */
export type TrainCallback = (event: TrainEvent) => void | Promise<void>;
