/**
 * The interface of a task that a language model is scored on. A task reads rows of a file in the format in which its data is usually
 * distributed, and says how an item becomes a prompt and a result becomes numbers; lib/eval/score.ts does the rest. registry.ts lists
 * the tasks.
 */
import type { Row } from '../../data/rows.ts';
import type { Fields } from './fields.ts';

/** The part of a task's data: the items, or those from which examples are taken. */
export type DataPart = 'items' | 'examples';

/** Numbers of one item by name; a task's summary is made of those of all items. */
export type ItemMetrics = Readonly<Record<string, number>>;

/** The part of an item in the numbers of its task. */
export interface ItemResult {
  readonly metrics: ItemMetrics;
  /** Groups that the item belongs to, by the name of the grouping. */
  readonly groups?: Readonly<Record<string, string>>;
}

/** Numbers of a task by name; null: undefined for these items. */
export type TaskMetrics = Readonly<Record<string, number | null>>;

/** Properties that all tasks have. D is the type of its items. */
interface TaskBase<D> {
  readonly name: string;
  /** It is raised when the prompts or the metrics change: results of different versions are not comparable. */
  readonly version: number;
  /** A digest of the file that describes it, for a task of the user's. Results of different files are not mixed. */
  readonly definition?: string;
  /** The measure in words, for the list of tasks. */
  readonly help: string;
  /** Sets of fields of which a row of the data has at least one as a whole. */
  readonly fields: readonly (readonly string[])[];
  /** Names of the columns of a .csv or .tsv file, where such files have no header. */
  readonly columns?: readonly string[];
  /** The name of the benchmark in the names of data files, where several tasks ask the same items. Default: that of the task. */
  readonly dataName?: string;
  /** Makes rows of a JSON document that is neither JSON Lines nor an array; null: it is no data of this task. */
  readonly rowsOfJson?: (document: unknown) => readonly Row[] | null;
  /** Makes rows of a file that is plain text. Default: such files are refused. */
  readonly rowsOfText?: (text: string) => readonly Row[];
  /** Whether a row belongs to a part of the data, for a benchmark whose only file has all parts. Default: every row does. */
  readonly belongsTo?: (fields: Fields, part: DataPart) => boolean;
  /** Reads the item of a row. @throws ArgumentError naming the field that is wrong */
  read(fields: Fields): D;
  /** The numbers of the task, by the results of its items, of which there is at least one. Default: the mean of each number. */
  readonly summarize?: (items: readonly ItemResult[]) => TaskMetrics;
}

/** Examples in front of the question. */
export interface FewShot<D> {
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
  /** Whether the index of an answer means the same in all items (a letter, a class), so that a macro-F1 of the indices has a meaning. */
  readonly hasClasses?: boolean;
  /** The numbers of an item by the log-likelihoods of its answers, and the tokens that each of them has. */
  measure(
    item: ChoiceItem,
    loglikelihoods: readonly number[],
    tokens: readonly number[],
  ): ItemMetrics;
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
}

/** A question whose answer is generated. */
export interface QuestionItem {
  readonly question: string;
  /** The reference's answer, of which an example consists. */
  readonly answer: string;
  /** Groups that the item belongs to, which its record shows. */
  readonly groups?: Readonly<Record<string, string>>;
}

/** The answer that was found in a generated text, by the name of the rule, and the numbers of the item. */
export interface Extraction {
  readonly extracted: Readonly<Record<string, string | null>>;
  readonly metrics: ItemMetrics;
}

/** A task whose answers are generated greedily. D is the type of its items. */
interface GeneratedTask<D extends QuestionItem> extends TaskBase<D>, FewShot<D> {
  readonly kind: 'generation';
  /** The prompt without examples. */
  prompt(item: D): string;
  /** Texts before which an answer ends. */
  readonly stopStrings: readonly string[];
  readonly maxNewTokens: number;
}

/** A task whose answers are generated, and compared with the reference's. */
export interface GenerationTask extends GeneratedTask<QuestionItem> {
  /** Finds the answer in a generated text, and compares it with the item's. */
  extract(item: QuestionItem, output: string): Extraction;
}

/** A programming problem, whose answer is a program. */
export interface CodeItem extends QuestionItem {
  /** The problem's name in the benchmark, by which other programs find it. */
  readonly taskId: string;
  /** Code behind the answer that raises an error where it is wrong. */
  readonly test: string;
}

/** A task whose answers are programs in Python. They are run only where that is asked for. */
export interface CodeTask extends GeneratedTask<CodeItem> {
  /** The program that an answer is a part of, without its test. */
  program(item: CodeItem, output: string): string;
}

/** A task that a language model is scored on. */
export type ScoringTask = ChoiceTask | RollingTask | GenerationTask | CodeTask;

/** Whether a task's answers are programs. */
export function isCodeTask(task: ScoringTask): task is CodeTask {
  return 'program' in task;
}
