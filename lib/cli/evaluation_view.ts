/** Evaluation results as text: one line for progress, several lines for `evaluate`. */
import type { ClassificationMetrics } from '../eval/metrics.ts';
import type { ClassifierEvaluation, EvaluationResult } from '../train/types.ts';
import { fixed, formatSeconds } from './terminal.ts';
import { textTable } from './text_table.ts';

/** One line with an evaluation's numbers, the loss first. */
export function evaluationLine(result: EvaluationResult | ClassifierEvaluation): string {
  const parts = [`loss ${result.loss.toFixed(4)}`];
  if ('metrics' in result) {
    parts.push(...scalars(result).map(([name, value]) => `${name} ${value}`));
  } else {
    parts.push(`perplexity ${result.perplexity.toFixed(3)}`);
    if (result.kl !== null) parts.push(`KL to the base ${fixed(result.kl)}`);
  }
  return `${parts.join('  ')}  (${formatSeconds(result.seconds)})`;
}

/**
 * A classifier's numbers as text, with the recall of each class and the confusion matrix where there is one.
 * @param names names of the classes, by id
 */
export function classifierText(
  result: ClassifierEvaluation,
  names: readonly string[] | null,
): string {
  const { loss, examples, tokens, metrics, seconds } = result;
  const tables = [
    textTable([
      ['loss', loss.toFixed(6)],
      ...scalars(result),
      ['examples', `${examples}, ${tokens} tokens, ${formatSeconds(seconds)}`],
    ]),
  ];
  if ('recallPerClass' in metrics) tables.push(perClass(metrics, names));
  if ('confusion' in metrics) tables.push(confusionTable(metrics, names));
  return tables.join('\n\n');
}

function scalars({ metrics }: ClassifierEvaluation): [string, string][] {
  return Object.entries(metrics).flatMap(([name, value]): [string, string][] => {
    if (name === 'examples' || Array.isArray(value)) return [];
    if (value === null) return name.startsWith('f1') ? [] : [[name, 'undefined']];
    return [[name, (value as number).toFixed(4)]];
  });
}

function perClass(
  metrics: Pick<ClassificationMetrics, 'precisionPerClass' | 'recallPerClass' | 'f1PerClass'>,
  names: readonly string[] | null,
): string {
  const { precisionPerClass: p, recallPerClass: r, f1PerClass: f } = metrics;
  const rows = r.map((recall, d) => [
    nameOf(d, names),
    ...[p[d] as number, recall, f[d] as number].map((value) => value.toFixed(4)),
  ]);
  return textTable([['class', 'precision', 'recall', 'f1'], ...rows], 'lr');
}

function confusionTable(
  { confusion }: Pick<ClassificationMetrics, 'confusion'>,
  names: readonly string[] | null,
): string {
  const labels = confusion.map((_, d) => nameOf(d, names));
  const rows = confusion.map((row, d) => [labels[d] as string, ...row.map(String)]);
  return textTable([['label \\ predicted', ...labels], ...rows], 'lr');
}

function nameOf(d: number, names: readonly string[] | null): string {
  return names?.[d] ?? String(d);
}
