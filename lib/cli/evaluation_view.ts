/** Evaluations as text: one line for progress, several for `evaluate`. */
import type { ClassificationMetrics } from '../eval/metrics.ts';
import type { ClassifierEvaluation, EvaluationResult } from '../train/types.ts';
import { fixed, formatSeconds } from './terminal.ts';

/** A line of numbers, the loss first. */
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
 * A classifier's numbers, with recall by class and the confusion matrix where there is one.
 * @param names of the classes, by id
 */
export function classifierText(
  result: ClassifierEvaluation,
  names: readonly string[] | null,
): string {
  const { loss, examples, tokens, metrics, seconds } = result;
  const rows = [['loss', loss.toFixed(6)], ...scalars(result)];
  const width = Math.max(...rows.map(([name]) => (name as string).length), 'examples'.length);
  const lines = rows.map(([name, value]) => `${(name as string).padEnd(width)}  ${value}`);
  lines.push(
    `${'examples'.padEnd(width)}  ${examples}, ${tokens} tokens, ${formatSeconds(seconds)}`,
  );
  if ('recallPerClass' in metrics) lines.push('', ...perClass(metrics, names));
  if ('confusion' in metrics) lines.push('', ...confusionTable(metrics, names));
  return lines.join('\n');
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
): string[] {
  const labels = metrics.recallPerClass.map((_, d) => nameOf(d, names));
  const width = Math.max(...labels.map(({ length }) => length), 'class'.length);
  const cells = (values: readonly (string | number)[]) =>
    values.map((v) => (typeof v === 'number' ? v.toFixed(4) : v).padStart(9)).join('  ');
  return [
    `${'class'.padEnd(width)}  ${cells(['precision', 'recall', 'f1'])}`,
    ...labels.map((label, d) => {
      const { precisionPerClass: p, recallPerClass: r, f1PerClass: f } = metrics;
      return `${label.padEnd(width)}  ${cells([p[d] as number, r[d] as number, f[d] as number])}`;
    }),
  ];
}

function confusionTable(
  { confusion }: Pick<ClassificationMetrics, 'confusion'>,
  names: readonly string[] | null,
): string[] {
  const labels = confusion.map((_, d) => nameOf(d, names));
  const corner = 'label \\ predicted';
  const first = Math.max(...labels.map(({ length }) => length), corner.length);
  const width = Math.max(...labels.map(({ length }) => length), 6);
  return [
    [corner.padEnd(first), ...labels.map((label) => label.padStart(width))].join('  '),
    ...confusion.map((row, d) =>
      [(labels[d] as string).padEnd(first), ...row.map((n) => String(n).padStart(width))].join(
        '  ',
      ),
    ),
  ];
}

function nameOf(d: number, names: readonly string[] | null): string {
  return names?.[d] ?? String(d);
}
