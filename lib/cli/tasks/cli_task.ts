/**
 * A task on the command line: which options are its own, how its data and models are opened for `train` and `evaluate`, and how
 * its numbers are shown. The commands know this interface alone; the list is list.ts.
 */
import type { AdapterConfigInput } from '../../adapters/make_adapter.ts';
import type { Evaluation } from '../../eval/types.ts';
import type { Model } from '../../models/index.ts';
import type { TaskName } from '../../tasks/list.ts';
import type { Task } from '../../tasks/task.ts';
import type { Tokenizer } from '../../text/tokenizer.ts';
import type { ResolvedMethod } from '../../train/methods.ts';
import type { OptionsInput } from '../../train/options.ts';
import type { AnyTrainerOptions } from '../../train/trainer_options.ts';
import type { EvaluateSettings } from '../evaluate_options.ts';
import type { ModelLoadOptions } from '../load.ts';
import type { PlanStatistics } from '../plan_view.ts';
import type { Progress } from '../progress.ts';
import type { TrainSettings } from '../train_options.ts';

/** The terminal, and the signal of an interrupt. */
export interface Surroundings {
  readonly progress: Progress;
  readonly signal: AbortSignal;
}

/** What every task is told of its data files. */
export interface CommonExamples {
  readonly batchSize: number;
  readonly evalBatchSize: number;
  readonly seed: number;
  readonly shuffle: boolean;
}

/** Options of the data of a run: training and held-out. */
export interface Examples {
  readonly data: object;
  readonly evalData: object;
}

/** Settings sorted by who needs them. E is what the task makes of the options of its data. */
export interface TrainSetup<E extends Examples = Examples> {
  readonly task: TaskName;
  readonly method: ResolvedMethod;
  /** What a fresh adapter is made with; null for full fine-tuning. */
  readonly adapter: AdapterConfigInput | null;
  /** Options of the Trainer. */
  readonly training: OptionsInput;
  /** Columns of files without header. */
  readonly columns: readonly string[] | undefined;
  /** Options of the data. */
  readonly examples: E;
}

/** A run that is ready to begin, and what its plan says of the data. */
export interface Prepared {
  readonly input: AnyTrainerOptions;
  readonly tokenizer: Tokenizer;
  readonly statistics: PlanStatistics;
  readonly format: string;
  close(): Promise<void>;
}

/** Held-out numbers as `evaluate` shows them. */
export interface Evaluated {
  readonly result: Evaluation;
  /** For people. */
  readonly text: string;
}

/** How the base of an adapter is loaded. */
export interface BaseSurroundings extends ModelLoadOptions {
  /** Folder of the adapter. */
  readonly adapter: string;
  readonly progress: Progress;
}

/** See the head of the file. E is what the task makes of the options of its data. */
export interface CliTask<E extends Examples = Examples> {
  readonly task: Pick<Task, 'name'>;
  /** PEFT's word for it, written into adapter_config.json. */
  readonly taskType: 'CAUSAL_LM' | 'SEQ_2_SEQ_LM' | 'SEQ_CLS';
  /** Options that not every task has a use for, and this one has. */
  readonly own: readonly (keyof TrainSettings)[];
  examples(settings: TrainSettings, common: CommonExamples): E;
  /** Opens data and model of `train`. */
  prepare(settings: TrainSettings, setup: TrainSetup<E>, around: Surroundings): Promise<Prepared>;
  /** The base of an adapter for `merge`, and its tokenizer. */
  loadBase(path: string, around: BaseSurroundings): Promise<{ model: Model; tokenizer: Tokenizer }>;
  /** Opens data and model of `evaluate`, and evaluates. */
  evaluate(settings: EvaluateSettings, around: Surroundings): Promise<Evaluated>;
}
