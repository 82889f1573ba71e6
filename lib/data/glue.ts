/**
 * The tasks of GLUE (Wang et al. 2018): the fields of their rows, their labels and their metrics. Field names are those of the
 * Hugging Face data sets, then those of the original files where they differ.
 */
import { ArgumentError } from '../errors.ts';
import { shown } from '../shown.ts';

/** Names of the metrics by which the best step may be chosen. */
export const kMetricNames = [
  'accuracy',
  'matthews',
  'f1Binary',
  'f1AccuracyMean',
  'f1Macro',
  'f1Micro',
  'exactMatch',
  'pearson',
  'spearman',
  'pearsonSpearmanMean',
  'loss',
] as const;
/** Name of a metric by which the best step may be chosen. */
export type MetricName = (typeof kMetricNames)[number];

/** One task of GLUE. */
export interface GlueTask {
  /** Alternatives for the fields of the texts, one or two each; the first whose fields a row has is used. */
  readonly texts: readonly (readonly string[])[];
  /** Alternatives for the field of the label; the first that a row has is used. */
  readonly label: readonly string[];
  /** Class names by id; null: the label is a number. */
  readonly labelNames: readonly string[] | null;
  /** Metrics of the task; the best step is chosen by the first. */
  readonly metrics: readonly MetricName[];
}

const kEntailment = ['entailment', 'not_entailment'];
const kSentences = ['sentence1', 'sentence2'];
const kPlain = ['label'];

/** The tasks of GLUE by the names of the Hugging Face data sets. */
export const GLUE_TASKS: Readonly<Record<string, GlueTask>> = {
  cola: task([['sentence']], ['unacceptable', 'acceptable'], ['matthews']),
  sst2: task([['sentence']], ['negative', 'positive'], ['accuracy']),
  mrpc: task(
    [kSentences, ['#1 String', '#2 String']],
    ['not_equivalent', 'equivalent'],
    ['accuracy', 'f1Binary'],
    ['label', 'Quality'],
  ),
  qqp: task(
    [['question1', 'question2']],
    ['not_duplicate', 'duplicate'],
    ['accuracy', 'f1Binary'],
    ['label', 'is_duplicate'],
  ),
  stsb: task([kSentences], null, ['pearson', 'spearman'], ['label', 'score']),
  mnli: task(
    [['premise', 'hypothesis'], kSentences],
    ['entailment', 'neutral', 'contradiction'],
    ['accuracy'],
    ['label', 'gold_label'],
  ),
  qnli: task([['question', 'sentence']], kEntailment, ['accuracy']),
  rte: task([kSentences], kEntailment, ['accuracy']),
  wnli: task([kSentences], ['not_entailment', 'entailment'], ['accuracy']),
};

function task(
  texts: string[][],
  labelNames: string[] | null,
  metrics: MetricName[],
  label: string[] = kPlain,
): GlueTask {
  return { texts, label, labelNames, metrics };
}

/** A task by its name. @throws ArgumentError naming the tasks */
export function glueTask(name: string): GlueTask {
  const found = Object.hasOwn(GLUE_TASKS, name) ? GLUE_TASKS[name] : undefined;
  if (found) return found;
  throw new ArgumentError(
    `GLUE task must be one of ${Object.keys(GLUE_TASKS).join(', ')}, got ${shown(name)}`,
  );
}
