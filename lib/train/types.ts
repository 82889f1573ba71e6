/**
 * The input of a training run and what comes out of it: options in transformers' names (declared in schema.ts), one record a
 * step, events. The command line is a thin layer on these; nothing here computes.
 */
import type { Batch } from '../data/collate.ts';
import type { MetricName } from '../data/glue.ts';
import type { Evaluation } from '../eval/types.ts';
import type { InputOf } from '../options/option.ts';
import type { Tensor } from '../tensor.ts';
import type { BatchPlan } from './memory_plan.ts';
import type {
  bestOptions,
  optimizationOptions,
  outputOptions,
  preparationOptions,
  resourceOptions,
} from './schema.ts';

export type { BatchSource } from '../data/batch_source.ts';
export type { ClassifierEvaluation, EvaluationResult, ExampleResult } from '../eval/types.ts';
export type { Batch };

export type { MethodName } from '../adapters/methods/registry.ts';

export { OPTIMIZER_NAMES, type OptimizerName } from './schema.ts';

/** Optimisation in transformers' names. */
export interface OptimizationOptions extends InputOf<typeof optimizationOptions> {}

/** Which of the evaluated steps a run exports. */
export interface BestOptions extends InputOf<typeof bestOptions> {}

/** Where a run is written; without `output` nothing is written at all. */
export interface OutputOptions
  extends InputOf<typeof outputOptions>,
    InputOf<typeof preparationOptions> {}

/** Memory and time that a run may spend. */
export interface ResourceOptions extends InputOf<typeof resourceOptions> {}

/** What a loss of the user's own gives: the mean over the micro-batch's supervised rows, and what to report. */
export interface LossResult {
  /** Scalar, attached to the tape. */
  readonly loss: Tensor;
  /** Detached scalars to report in the step's record under `custom`, averaged with the micro-batch's share. */
  readonly metrics?: Readonly<Record<string, Tensor>>;
}

/** What a loss may look at; the rows of `hidden` are those of the batch. */
export interface LossContext<B = Batch> {
  /** The micro-batch; of an encoder-decoder `batch.decoder` has the rows. */
  readonly batch: B;
  readonly hidden: Tensor; // (N,C) after the final norm, on the tape
  readonly headWeight: Tensor; // (V,C)
  /** (V,C), the teacher's: frozen where the head is trained or saved with the adapter, else the same tensor as headWeight. */
  readonly teacherHeadWeight: Tensor;
  readonly logitSoftcap: number | null;
  /** Hidden states of the teacher (N,C), computed at the first call, without gradient. */
  readonly teacherHidden: () => Tensor;
  readonly step: number;
  readonly totalSteps: number;
  /** Rows of this micro-batch and of the whole accumulation window. */
  readonly supervisedRows: number;
  readonly windowSupervisedRows: number;
}

/**
 * Called once a micro-batch that has a supervised row; the others are skipped. The result counts with supervisedRows /
 * windowSupervisedRows in the step's loss. A tensor made without naming a device lies on the model's. What the function
 * makes is freed when it returns, as in a `scope()`. Of an async function both hold for what it makes before its first
 * await. A tensor that is to outlive the call needs `keep()`.
 */
export type LossFunction<B = Batch> = (context: LossContext<B>) => LossResult | Promise<LossResult>;

/** One object a line in run/metrics.jsonl. Terms are raw (unweighted) values of the whole window. */
export interface StepRecord {
  /** From 1. */
  readonly step: number;
  /** Epochs done after this step, fractional. */
  readonly epoch: number;
  /** Weighted total. */
  readonly loss: number;
  readonly taskLoss: number;
  /** null where the term is switched off. */
  readonly consistency: number | null;
  readonly diversity: number | null;
  readonly svd: number | null;
  readonly consistencyWeight: number;
  readonly diversityWeight: number;
  readonly svdWeight: number;
  /** Before clipping. */
  readonly gradNorm: number;
  readonly learningRate: number;
  /** Real tokens (padding not counted) and supervised tokens of the window. */
  readonly tokens: number;
  readonly supervisedTokens: number;
  readonly tokensPerSecond: number;
  /** Since the run began, over all its resumptions. */
  readonly elapsedSeconds: number;
  readonly peakRssBytes: number;
  /** Terms of the caller's own, by key. */
  readonly terms?: Readonly<
    Record<string, { readonly value: number | null; readonly weight: number }>
  >;
  /** What a user's loss reported. */
  readonly custom?: Readonly<Record<string, number>>;
}

/**
 * Known before the first step. Counts and the bytes of what stands still are exact; what a step needs on top is
 * measured on one micro-batch (`--dry-run`, `Trainer.plan({ measure: true })`), else null.
 */
export interface RunPlan {
  readonly totalSteps: number;
  readonly warmupSteps: number;
  /** Of the first epoch. */
  readonly microBatchesPerEpoch: number;
  readonly trainableParameters: number;
  readonly baseParameters: number;
  readonly memory: {
    readonly baseBytes: number;
    readonly teacherBytes: number;
    readonly adapterBytes: number;
    /** Moments and gradients. */
    readonly optimizerBytes: number;
    /** Peak of a micro-batch's forward and backward over what stands still. */
    readonly activationBytes: number | null;
    /** Of tensors and packed weights, by the engine's count; the process holds Node, code and scratch besides. */
    readonly totalBytes: number | null;
  };
  /** What a memory budget chose for the measured micro-batch; null without one. */
  readonly memoryPlan: BatchPlan | null;
  /** Tokens of the measured micro-batch; a longer one needs more. */
  readonly measuredTokens: number | null;
  readonly secondsPerStep: number | null;
}

/** Why a run ended. */
export type StopReason = 'completed' | 'aborted';

/** What a run tells while it goes on; `type` says which. */
export type TrainEvent =
  | { readonly type: 'start'; readonly plan: RunPlan; readonly startStep: number }
  /** After every optimiser step. */
  | {
      readonly type: 'step';
      readonly record: StepRecord;
      readonly totalSteps: number;
      readonly secondsLeft: number;
    }
  /** Every `loggingSteps`: the same record, for progress lines. */
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
  /** While an evaluation goes on: examples done. */
  | { readonly type: 'evaluating'; readonly step: number; readonly examples: number }
  | { readonly type: 'checkpoint'; readonly step: number; readonly path: string }
  /** The run stands between two steps, and goes on again; see `Trainer.pause`. */
  | { readonly type: 'paused' | 'resumed'; readonly step: number }
  /** `code` is stable, for programs; `message` is for people. */
  | { readonly type: 'warning'; readonly code: string; readonly message: string }
  | { readonly type: 'end'; readonly reason: StopReason; readonly result: TrainResult };

/** Something that a user should know, as an event. */
export type Warning = Extract<TrainEvent, { type: 'warning' }>;

/** How a run ended. */
export interface TrainResult {
  readonly reason: StopReason;
  /** Optimiser steps done, over all resumptions. */
  readonly steps: number;
  readonly elapsedSeconds: number;
  readonly last: StepRecord | null;
  /** Of the parameters that were exported: the last ones, or the best. */
  readonly evaluation: Evaluation | null;
  /** Which step the exported parameters are of, where the best are kept. */
  readonly best: BestStep | null;
  /** Folder of the exported adapter or model; null without `output`. */
  readonly output: string | null;
  /** Folder of the last checkpoint; null without `output` and before the first step. */
  readonly checkpoint: string | null;
}

/** The step whose evaluation was the best so far. */
export interface BestStep {
  readonly step: number;
  readonly metric: MetricName;
  readonly value: number;
}

/** Called in the order given, each awaited, before the event is handed to the iterator. */
export type TrainCallback = (event: TrainEvent) => void | Promise<void>;
