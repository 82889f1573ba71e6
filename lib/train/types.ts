/**
 * What goes into a training run and what comes out of it: options in transformers' names (camel case), one record a
 * step, events. The command line is a thin layer on these; nothing here computes.
 */
import type { Batch } from '../data/collate.ts';
import type { MetricName } from '../data/glue.ts';
import type { Evaluation } from '../eval/types.ts';
import type { SchedulerOptions } from '../optim/schedulers.ts';
import type { Tensor } from '../tensor.ts';
import type { BatchPlan, MemoryBudget } from './memory_plan.ts';

export type { BatchSource } from '../data/batch_source.ts';
export type { ClassifierEvaluation, EvaluationResult, ExampleResult } from '../eval/types.ts';
export type { Batch };

export type { MethodName } from '../adapters/methods/registry.ts';

/** Optimisers by name. */
export const OPTIMIZER_NAMES = ['adamw', 'adafactor', 'sgd'] as const;
/** One of {@link OPTIMIZER_NAMES}. */
export type OptimizerName = (typeof OPTIMIZER_NAMES)[number];

/** Optimisation in transformers' names; defaults in brackets. */
export interface OptimizationOptions {
  optim?: OptimizerName; // adamw
  learningRate?: number; // 2e-5
  lrSchedulerType?: string; // cosine
  lrSchedulerKwargs?: SchedulerOptions;
  warmupSteps?: number; // 0.03; below 1 a share of the run, rounded up
  weightDecay?: number; // 0
  adamBeta1?: number; // 0.9
  adamBeta2?: number; // 0.999
  adamEpsilon?: number; // 1e-8
  momentum?: number; // 0, sgd only
  /** LoRA+: rate of B over that of A. */
  loraplusLrRatio?: number; // 1
  maxGradNorm?: number; // 1; 0 switches clipping off
  numTrainEpochs?: number; // 1
  maxSteps?: number; // none; wins over numTrainEpochs
  gradientAccumulationSteps?: number; // 1
}

/** Which of the evaluated steps a run exports. */
export interface BestOptions {
  /**
   * Keep the parameters of the step whose evaluation was best by this metric, and export those; null: export the last ones.
   * Default for a classifier with `evalSteps`: accuracy, Pearson's r for regression, F1 over all decisions for several labels.
   * Default for a language model: null (`loss` is what it can be judged by). A metric that the task has not is refused by the
   * Trainer's constructor.
   */
  metricForBestModel?: MetricName | null;
}

/** Where a run is written; without `output` nothing is written at all. */
export interface OutputOptions {
  /** Folder of the adapter and run/; must be empty or absent unless `overwrite` or `resume` is set. */
  output?: string;
  overwrite?: boolean;
  /** Continue from the last good checkpoint of `output`, bit for bit. */
  resume?: boolean;
  /**
   * Anything JSON that was done to the model before, such as a head's warm-up, and that a run's numbers depend on: a checkpoint
   * of a run with another preparation is not continued.
   */
  preparation?: Readonly<Record<string, unknown>>;
  /** Steps between checkpoints (0: by time only), evaluations (0: only at the end) and `log` events. */
  saveSteps?: number; // 0
  evalSteps?: number; // 0
  loggingSteps?: number; // 1
  /**
   * A checkpoint is also written at the end of the first step that ends this many minutes after the last one, or after the
   * start; 0: never. Whatever these say, the last whole step is saved when the run ends, is stopped or fails.
   */
  saveMinutes?: number; // 10
  /** Checkpoints to keep, the oldest go first. */
  saveTotalLimit?: number; // 2
  /** Form of an exported PiSSA adapter: a LoRA of rank 2r on the untouched base, or the residual model's pair. */
  export?: 'lora' | 'residual';
  /** Anything JSON, kept in run/config.json under "command" beside the trainer's own resolved options. */
  runConfig?: unknown;
}

/** What a run spends. */
export interface ResourceOptions {
  /**
   * What the process may hold: `max` (the fastest plan), `min` (the smallest), or bytes. The losses are the same,
   * the gradients but for rounding. Default: what the model's own settings say (`layerKeep`: `lean`).
   */
  memoryBudget?: MemoryBudget;
  /**
   * Run the teacher once for each sequence and keep what the consistency term needs of it, on disk: of a row C numbers in f32
   * (f64 beside f64) and an entropy in f64. For runs of several epochs, with a frozen head without soft-capping. Default
   * false.
   */
  cacheTeacher?: boolean;
  /**
   * Run micro-batches and updates of shapes that repeat as graphs: recorded once, launched as one. For GPUs and language
   * models without a loss of one's own. The numbers are the same bit for bit. Default false.
   */
  captureGraphs?: boolean;
}

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
