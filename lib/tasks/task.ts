/**
 * A task: the kind of examples that a model learns from, the loss that it is trained by, and how it is scored. Trainer,
 * evaluator, command line and benchmark know this interface alone; what differs between language models, encoder-decoders and
 * classifiers stands in one file each beside this one.
 */
import type { TunedModel } from '../adapters/tuned_model.ts';
import type { BatchSource } from '../data/batch_source.ts';
import type { MetricName } from '../data/glue.ts';
import type { EvaluateOptions, Evaluation } from '../eval/types.ts';
import type { SelectedRows } from '../losses/positions.ts';
import type { StepOfRun } from '../losses/schedules.ts';
import type { Term, TermDefinition, TermNote } from '../losses/term.ts';
import type { MicroBatchLoss, TermCounts } from '../losses/term_sums.ts';
import type { Model } from '../models/index.ts';
import type { OptionTable } from '../options/option.ts';
import type { Tensor } from '../tensor.ts';

/** Names of the tasks, as `--task` takes them. */
export type TaskName = 'causal-lm' | 'seq2seq-lm' | 'sequence-classification';

/** Rows of a micro-batch or of a whole window. */
export interface RowCounts extends TermCounts {
  /** Real rows, padding not counted. */
  readonly tokens: number;
}

/** A micro-batch, with the choice of its rows made once. */
export interface MicroBatch<B = unknown> {
  readonly batch: B;
  /** Rows that some term uses; null for a task whose batches have no choice of rows. */
  readonly selected: SelectedRows | null;
  readonly counts: RowCounts;
}

/** Outputs of the student for one micro-batch. */
export interface StudentOutputs {
  /** States before a head that is one matrix, of the selected rows, or the logits of a head that is none; on the tape. */
  readonly outputs: Tensor;
  /** By layer, where terms ask for them. */
  readonly hiddenStates: ReadonlyMap<number, Tensor>;
}

/** Everything that the loss of a micro-batch is made of. */
export interface LossPass<B = unknown, T = unknown> {
  readonly micro: MicroBatch<B>;
  readonly student: StudentOutputs;
  /** null where no term reads a teacher. */
  readonly teacher: T | null;
  /** Weights of the terms at this step, by key. */
  readonly weights: Readonly<Record<string, number>>;
  /** Rows of the whole accumulation window. */
  readonly totals: RowCounts;
  readonly at: StepOfRun;
}

/** The loss of a run: made once, used for every micro-batch. T is what it keeps of the teacher for a micro-batch. */
export interface TaskLoss<B = unknown, T = unknown> {
  readonly terms: readonly Term[];
  /** Outputs of the teacher for a micro-batch; the caller gives them back with forget(). */
  teach(micro: MicroBatch<B>): Promise<T>;
  forget(teacher: T): void;
  /** Entropy of the teacher's distribution at T for each row of the regularizers, in nats. */
  entropies(teacher: T, micro: MicroBatch<B>): Promise<ArrayLike<number>>;
  /** The largest entropy that a row can have, in nats. */
  readonly mostEntropy: number;
  /** Forward pass of the student. */
  forward(micro: MicroBatch<B>): StudentOutputs;
  /** Enqueues the loss. */
  compute(pass: LossPass<B, T>): MicroBatchLoss;
  /** The loss as tensors alone, which a graph may record; null where the task has no such form. */
  readonly recorded: RecordedLoss<B, T> | null;
  dispose(): void;
}

/** Tensors by name; null: absent. */
export type Named = Readonly<Record<string, Tensor | null>>;

/** A micro-batch ready to be recorded as a graph, or to be run by one. */
export interface RecordedPass {
  /** Whatever the enqueued ops depend on beside the names, types and shapes of the inputs. */
  readonly key: string;
  /** Tensors that change from step to step; the runner takes them over. */
  readonly inputs: Named;
  /** Teacher, forward and losses of the inputs as they are now: the loss on the tape, and the tensors that hold the values. */
  readonly run: (now: Named) => { readonly loss: Tensor; readonly results: Named };
}

/** The form of a loss that graphs record. */
export interface RecordedLoss<B = unknown, T = unknown> {
  prepare(pass: Omit<LossPass<B, T>, 'student'>): RecordedPass;
  /** The values of the terms in the results of a pass. */
  valuesOf(results: Named, micro: MicroBatch<B>): MicroBatchLoss;
}

/** Settings of a {@link TaskLoss}. */
export interface LossSettings {
  /** The terms of the run, those of the task that are switched on and the caller's own. */
  readonly terms: readonly Term[];
  /** Options of the regularizers with every default filled in; see {@link Task.options}. */
  readonly regularizers: Readonly<Record<string, unknown>>;
  /** Bound on the logits in work in bytes; 0: the default of the device. */
  readonly chunkBytes?: number;
  /** File in which the teacher's part is kept from epoch to epoch, null for a temporary one; left out: it is not kept. */
  readonly teacherCache?: string | null;
  /** Called once for each thing about a term that a user should know. */
  readonly onNote?: (note: TermNote) => void;
}

/** Metrics that an evaluation of a model has. */
export interface TaskMetrics {
  readonly names: readonly MetricName[];
  /** The metric that chooses the best step where the caller names none; null: none does. */
  readonly standard: MetricName | null;
  /** For messages: `a language model`, `regression (numLabels 1)`. */
  readonly subject: string;
}

/** The parts of a run that a task checks before the first step. */
export interface TaskRun<M extends Model = Model, B = unknown> {
  readonly tuned: TunedModel<M>;
  readonly data: BatchSource<B>;
  readonly evalData?: BatchSource<B> | undefined;
  readonly regularizers: Readonly<Record<string, unknown>>;
}

/** See the head of the file. M is the kind of model, B that of its micro-batches. */
export interface Task<M extends Model = Model, B = unknown> {
  readonly name: TaskName;
  /** Terms beside the task's own loss, each of which a weight above 0 switches on. */
  readonly terms: readonly TermDefinition[];
  /** Options of the task itself, beside those of its terms. */
  readonly options: OptionTable;
  /** Whether this is the task of a model. */
  tunes(model: Model): model is M;
  /** The choice of rows, and their counts. */
  select(batch: B, regularizers: Readonly<Record<string, unknown>>): MicroBatch<B>;
  loss(tuned: TunedModel<M>, settings: LossSettings): TaskLoss<B>;
  /** Held-out numbers. @throws ArgumentError where no row is supervised, or there is no example */
  evaluate(
    tuned: TunedModel<M>,
    batches: AsyncIterable<B> | Iterable<B>,
    options: EvaluateOptions,
  ): Promise<Evaluation>;
  metrics(model: M): TaskMetrics;
  /** Refuses what the task knows to be wrong before the first step. */
  check(run: TaskRun<M, B>): void;
  /** The reason why a loss of the caller's own cannot replace this task's; null: it can. */
  readonly lossObstacle: string | null;
  /** The reason why this task has no teacher that could be kept; null: it has. */
  readonly teacherObstacle: string | null;
  /** The reason why the teacher of a run cannot be kept, whatever its terms; null: it can. */
  cacheObstacle(run: TaskRun<M, B>): string | null;
  /** The reason why its micro-batches cannot be recorded as graphs; null: they can. */
  readonly graphObstacle: string | null;
}
