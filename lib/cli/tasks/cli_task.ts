/**
 * The interface of a task on the command line: its own options, how its data and models are opened for `train` and
 * `evaluate`, and how its results are shown. The commands use this interface alone; list.ts lists the tasks.
 */
import type { AdapterConfigInput } from '../../adapters/create.ts';
import type { CorruptionOptions } from '../../data/corruption_options.ts';
import type { Evaluation } from '../../eval/types.ts';
import type { Model } from '../../models/index.ts';
import type { Task } from '../../tasks/task.ts';
import type { Tokenizer } from '../../text/tokenizer.ts';
import type { ResolvedRun, RunSettings } from '../../train/resolve_run.ts';
import type { AnyTrainerOptions } from '../../train/trainer_options.ts';
import type { EvaluateSettings } from '../evaluate_options.ts';
import type { ShownExample } from '../example_view.ts';
import type { ModelLoadOptions } from '../load.ts';
import type { PlanStatistics } from '../plan_view.ts';
import type { Progress } from '../progress.ts';
import type { TrainSettings } from '../train_options.ts';

/** The context of a command: its progress display, and the AbortSignal of an interrupt. */
export interface RunContext {
  readonly progress: Progress;
  readonly signal: AbortSignal;
}

/** Options of the data files that are common to all tasks. */
export interface CommonExamples {
  readonly batchSize: number;
  readonly evalBatchSize: number;
  readonly seed: number;
  readonly shuffle: boolean;
  /** Corruptions of the training data; undefined: none. */
  readonly corruption?: CorruptionOptions | undefined;
}

/** Options of the data of a run: those of the training data and those of the held-out data. */
export interface Examples {
  readonly data: object;
  readonly evalData: object;
}

/** The settings of `train`, separated by the part of the library that uses them. E is the type of the task's data options. */
export interface TrainSetup<E extends Examples = Examples> {
  /** The options of the Trainer. */
  readonly run: ResolvedRun;
  /** Configuration of a new adapter; null for full fine-tuning. */
  readonly adapter: AdapterConfigInput | null;
  /** Names of the columns, for files that have no header. */
  readonly columns: readonly string[] | undefined;
  /** Weights of the training data's files. */
  readonly dataWeights: readonly number[] | undefined;
  /** Options of the data. */
  readonly examples: E;
}

/** A run that is ready to begin, with the statistics of its data. */
export interface Prepared {
  readonly input: AnyTrainerOptions;
  /** The options of the Trainer, with what is known of the data. */
  readonly run: ResolvedRun;
  readonly tokenizer: Tokenizer;
  readonly statistics: PlanStatistics;
  readonly format: string;
  /** The first example of each file of the training data, for `--dry-run`. */
  examples(): Promise<readonly ShownExample[]>;
  close(): Promise<void>;
}

/** The result of an evaluation, as values and as text. */
export interface Evaluated {
  readonly result: Evaluation;
  /** The result as text for the terminal. */
  readonly text: string;
}

/** Options of loading a model without its adapter. */
export interface BaseModelOptions extends ModelLoadOptions {
  /** Path of the folder of the adapter that will be loaded onto it. Default: none will be. */
  readonly adapter?: string;
  readonly progress: Progress;
}

/** A task on the command line. E is the type of the task's data options. */
export interface CliTask<E extends Examples = Examples> {
  readonly task: Pick<Task, 'name'>;
  /** PEFT's name of the task, which is written into adapter_config.json. */
  readonly taskType: 'CAUSAL_LM' | 'SEQ_2_SEQ_LM' | 'SEQ_CLS';
  /** Options that this task uses and some other task does not. */
  readonly ownOptions: readonly (keyof TrainSettings)[];
  examples(settings: TrainSettings, common: CommonExamples): E;
  /** Settings of the run that the task derives from its own options. Default: none. */
  runSettings?(settings: TrainSettings): Partial<RunSettings>;
  /** Opens the data and loads the model for `train`. */
  prepare(settings: TrainSettings, setup: TrainSetup<E>, context: RunContext): Promise<Prepared>;
  /** Loads a model without its adapter, and its tokenizer, for `merge`, `export` and `generate`. */
  loadBase(
    path: string,
    context: BaseModelOptions,
  ): Promise<{ model: Model; tokenizer: Tokenizer }>;
  /** Opens the data, loads the model and evaluates it, for `evaluate`. */
  evaluate(settings: EvaluateSettings, context: RunContext): Promise<Evaluated>;
}
