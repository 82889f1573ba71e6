/**
 * A task: the kind of examples that a model learns from, the loss with which it is trained, and how it is scored. The trainer,
 * the evaluator, the command line and the benchmark use this interface alone; each task is a file beside this one.
 */
import type { TunedModel } from '../adapters/tuned_model.ts';
import type { BatchSource } from '../data/batch_source.ts';
import type { MetricName } from '../data/glue.ts';
import type { SelectedRows } from '../data/select_rows.ts';
import type { EvaluateOptions, Evaluation } from '../eval/types.ts';
import type { NamedTensors } from '../graph.ts';
import type {
  ComputedLoss,
  StepOfRun,
  Term,
  TermCounts,
  TermDefinition,
  TermNote,
} from '../losses/term.ts';
import type { Model } from '../models/index.ts';
import type { OptionTable } from '../options/option.ts';
import type { Int8Products } from '../runtime.ts';
import type { Tensor } from '../tensor.ts';
import type { TeacherCachePlace } from './teacher_cache.ts';

/** Names of the tasks, as `--task` takes them. */
export type TaskName = 'causal-lm' | 'seq2seq-lm' | 'sequence-classification';

/** Counts of the rows in a micro-batch or in a whole accumulation window. */
export interface RowCounts extends TermCounts {
  /** The number of tokens, without padding. */
  readonly tokens: number;
}

/** A micro-batch of a window, as it was read, with what was counted before the window's first pass. D is the type of what the data give. */
export interface MicroBatch<D = unknown> {
  readonly data: D;
  /** Its index in the window, from 0. */
  readonly index: number;
  /** Rows that some term uses; null for a task that does not select rows. */
  readonly rows: SelectedRows | null;
  readonly counts: RowCounts;
}

/** The properties that all micro-batches of a step have in common. */
export interface StepOfWindow extends StepOfRun {
  /** Weights of the terms at this step, by the key of the term. */
  readonly weights: Readonly<Record<string, number>>;
  /** Row counts of the whole accumulation window. */
  readonly totals: RowCounts;
}

/** The inputs of a micro-batch's pass. A graph reads the key and the tensors only. */
export interface Inputs<D = unknown> {
  /** A key for everything that the enqueued ops depend on, other than the names, types and shapes of the tensors. */
  readonly key: string;
  /** Tensors that change from step to step, the teacher's outputs among them where these were computed ahead; the runner frees them. */
  readonly tensors: NamedTensors;
  readonly batch: MicroBatch<D>;
  readonly step: StepOfWindow;
}

/** The outputs of a micro-batch's forward pass. */
export interface Outputs {
  /** The hidden states of the selected rows, where the head is a single matrix, else the logits; recorded on the tape. */
  readonly student: Tensor;
  /** Hidden states by layer, where terms need them. */
  readonly hiddenStates: ReadonlyMap<number, Tensor>;
  /** The teacher's outputs; empty where no term reads them. A loss of a caller's own adds them when it asks for them. */
  readonly teacher: Record<string, Tensor | null>;
}

/**
 * The quantity that a run minimises, made once and used for every micro-batch: of language models, of classifiers, or a loss of the caller's own. For
 * each micro-batch the runner calls teacher(), prepare(), forward() and losses(), in this order.
 */
export interface Objective<D = unknown, I extends Inputs<D> = Inputs<D>> {
  readonly terms: readonly Term[];
  /** The memory that the losses take beside the forward pass; null where that is next to none. */
  readonly memory: LossMemory | null;
  /** The largest entropy that a row can have, in nats. */
  readonly maxEntropy: number;
  /** Whether a micro-batch has no row that any term reads, so that nothing is computed for it. */
  skips(batch: MicroBatch<D>): boolean;
  /** Computes the teacher's outputs ahead of the pass; empty where nobody reads them, and where the pass itself runs the teacher. */
  teacher(batch: MicroBatch<D>, at: StepOfRun): Promise<NamedTensors>;
  /** The entropy of the teacher's distribution at temperature T for each regularized row, in nats. */
  entropies(teacher: NamedTensors, batch: MicroBatch<D>): Promise<ArrayLike<number>>;
  /** Makes tensors of what the host knows, and takes over the teacher's. */
  prepare(batch: MicroBatch<D>, step: StepOfWindow, teacher: NamedTensors): I;
  /** Enqueues the forward pass; before it, in a graph, that of the teacher. */
  forward(inputs: I): Outputs;
  /** Enqueues the computation of the loss. Only a caller's own is asynchronous. */
  losses(inputs: I, outputs: Outputs): ComputedLoss | Promise<ComputedLoss>;
  dispose(): void;
}

/** The memory of a loss, as a memory plan asks for it. */
export interface LossMemory {
  /** Enqueues losses and gradients of so many rows, whose memory is measured; what {@link LossMemory.bytes} says is left out. */
  probe(rows: number): void;
  /** Bytes that are kept from the first step on, and bytes that a micro-batch of so many rows takes. */
  bytes(rows: number, run?: LossOfRun): { readonly kept: number; readonly working: number };
}

/** The products of the student's and the teacher's pass that are computed in int8; undefined: none. */
export interface PassProducts {
  readonly student?: Int8Products;
  readonly teacher?: Int8Products;
}

/** Facts of a run on which the memory of its losses depends. */
export interface LossOfRun {
  /** Micro-batches of a step. Default 1. */
  readonly microBatches?: number;
  /** Whether the teacher's outputs are kept in a file. Default false. */
  readonly cachesTeacher?: boolean;
}

/** Settings of an {@link Objective}. */
export interface LossSettings {
  /** The terms of the run: the task's own terms that are switched on, and the caller's. */
  readonly terms: readonly Term[];
  /** Options of the regularizers with every default filled in; see {@link Task.options}. */
  readonly regularizers: Readonly<Record<string, unknown>>;
  /** Limit, in bytes, on the logits that are computed at one time; 0 for the default of the device. */
  readonly chunkBytes?: number;
  /** Seed of the run, for what a loss draws. Default 0. */
  readonly seed?: number;
  /** The file that keeps the teacher's outputs for later epochs or runs; if omitted, they are not kept. */
  readonly teacherCache?: TeacherCachePlace;
  /** The identity of the teacher, for the header of that file. Default: none, for a temporary file. */
  readonly teacherIdentity?: string;
  /** The products of the student's and the teacher's pass that are computed in int8. Default none. */
  readonly int8?: PassProducts;
  /** Whether graphs compute the micro-batches. Default false. */
  readonly graphs?: boolean;
  /** Called once for each note about a term that a user should see. */
  readonly onNote?: (note: TermNote) => void;
}

/** The metrics that evaluations of a model have. */
export interface TaskMetrics {
  readonly names: readonly MetricName[];
  /** The metric that chooses the best step where the caller names none; null where the last step is kept. */
  readonly defaultMetric: MetricName | null;
  /** The name of the model's kind for messages: `a language model`, `regression with 1 label`. */
  readonly subject: string;
}

/** The parts of a run that a task checks before the first step. */
export interface TaskRun<M extends Model = Model, B = unknown> {
  readonly tuned: TunedModel<M>;
  readonly data: BatchSource<B>;
  readonly evalData?: BatchSource<B> | undefined;
  readonly regularizers: Readonly<Record<string, unknown>>;
}

/** A task as described at the head of this file. M is the type of its models, B that of its micro-batches. */
export interface Task<M extends Model = Model, B = unknown> {
  readonly name: TaskName;
  /** Terms in addition to the task's own loss, each switched on by a weight above 0. */
  readonly terms: readonly TermDefinition[];
  /** Options of the task itself, in addition to those of its terms. */
  readonly options: OptionTable;
  /** Whether this task trains models of this kind. */
  supports(model: Model): model is M;
  /** Selects the rows of a batch and counts them. */
  select(batch: B, regularizers: Readonly<Record<string, unknown>>): Omit<MicroBatch<B>, 'index'>;
  objective(tuned: TunedModel<M>, settings: LossSettings): Objective<B>;
  /**
   * Evaluates a model on held-out data.
   * @throws ArgumentError where no row is supervised, or there is no example
   */
  evaluate(
    tuned: TunedModel<M>,
    batches: AsyncIterable<B> | Iterable<B>,
    options: EvaluateOptions,
  ): Promise<Evaluation>;
  /** Bytes that an evaluation takes beside the passes over its batches. */
  evaluationBytes(model: M): number;
  metrics(model: M): TaskMetrics;
  /** Refuses a run that cannot work for this task, before its first step. */
  check(run: TaskRun<M, B>): void;
  /** The reason why a loss of the caller's own cannot replace this task's; null if it can. */
  readonly lossObstacle: string | null;
  /** The reason why this task has no teacher that could be cached; null if it has one. */
  readonly teacherObstacle: string | null;
  /** The reason why the teacher of a run cannot be cached, whatever its terms; null if it can. */
  cacheObstacle(run: TaskRun<M, B>): string | null;
  /** The reason why micro-batches of this task cannot be recorded as graphs; null if they can. */
  readonly graphObstacle: string | null;
}
