/**
 * The interface of a task that a language model is scored on. A task reads rows of a file in the format in which its data is usually
 * distributed, and says how an item becomes a prompt and a result becomes numbers; lib/eval/score.ts does the rest. registry.ts lists
 * the tasks.
 */
import type { Fields } from './fields.ts';

/** Numbers of one item by name; a task's summary is made of those of all items. */
export type ItemMetrics = Readonly<Record<string, number>>;

/** Numbers of a task by name; null: undefined for these items. */
export type TaskMetrics = Readonly<Record<string, number | null>>;

/** Properties that all tasks have. D is the type of its items. */
interface TaskBase<D> {
  readonly name: string;
  /** It is raised when the prompts or the metrics change: results of different versions are not comparable. */
  readonly version: number;
  /** The measure in words, for the list of tasks. */
  readonly help: string;
  /** Sets of fields of which a row of the data has at least one as a whole. */
  readonly fields: readonly (readonly string[])[];
  /** Names of the columns of a .csv or .tsv file, where such files have no header. */
  readonly columns?: readonly string[];
  /** The name of the benchmark in the names of data files, where several tasks ask the same items. Default: that of the task. */
  readonly dataName?: string;
  /** Reads the item of a row. @throws ArgumentError naming the field that is wrong */
  read(fields: Fields): D;
  /** The numbers of the task, by those of its items, of which there is at least one. Default: the mean of each. */
  readonly summarize?: (items: readonly ItemMetrics[]) => TaskMetrics;
}

/** Examples in front of the question. */
interface FewShot<D> {
  /** Number of examples, which come from a second file. */
  readonly numFewshot: number;
  /** Chooses examples for each item in turn; made anew for each run. Default: the first ones of the file for all items. */
  readonly drawFewshot?: () => (examples: number, count: number) => readonly number[];
  /** The text of an example, as it stands in a prompt. */
  example(item: D): string;
}

/** An item with several answers, of which the model prefers one. */
export interface ChoiceItem {
  /** Text in front of the prompt, before any examples. Default none. */
  readonly description?: string;
  /** The question as the model reads it; empty: the answers are whole texts. */
  readonly context: string;
  readonly choices: readonly string[];
  /** Indices of the right answers, of which the first is shown where the item is an example. */
  readonly gold: readonly number[];
  /** Groups that the item belongs to, which its record shows. */
  readonly groups?: Readonly<Record<string, string>>;
}

/** A task whose answers are given, and compared by their log-likelihoods. */
export interface ChoiceTask extends TaskBase<ChoiceItem>, Pick<FewShot<ChoiceItem>, 'numFewshot'> {
  readonly kind: 'choice';
  /** Text between the question and an answer. */
  readonly delimiter: string;
  /** The numbers of an item by the log-likelihoods of its answers. */
  measure(item: ChoiceItem, loglikelihoods: readonly number[]): ItemMetrics;
}

/** A text that is scored as a whole. */
export interface TextItem {
  /** The text that the model reads. */
  readonly text: string;
  /** The text whose words and bytes are counted, where the one that the model reads was made of it. */
  readonly original?: string;
}

/** A task whose result is the perplexity of texts. */
export interface RollingTask extends TaskBase<TextItem> {
  readonly kind: 'rolling';
  /** Makes an item of a file that is plain text. Default: such files are refused. */
  readonly fromText?: (text: string) => TextItem;
}

/** A question whose answer is generated. */
export interface QuestionItem {
  readonly question: string;
  /** The reference's answer, of which an example consists. */
  readonly answer: string;
}

/** The answer that was found in a generated text, by the name of the rule, and the numbers of the item. */
export interface Extraction {
  readonly extracted: Readonly<Record<string, string | null>>;
  readonly metrics: ItemMetrics;
}

/** A task whose answers are generated greedily. */
export interface GenerationTask extends TaskBase<QuestionItem>, FewShot<QuestionItem> {
  readonly kind: 'generation';
  /** The prompt without examples. */
  prompt(item: QuestionItem): string;
  /** Texts before which an answer ends. */
  readonly stopStrings: readonly string[];
  readonly maxNewTokens: number;
  extract(item: QuestionItem, output: string): Extraction;
}

/** A task that a language model is scored on. */
export type ScoringTask = ChoiceTask | RollingTask | GenerationTask;
