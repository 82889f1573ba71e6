/** Metrics of multiple choice, as lm-evaluation-harness defines them. */
import type { ChoiceItem, ItemMetrics } from './task.ts';

/** The index of the largest value, the first one of equals. */
export function indexOfLargest(values: readonly number[]): number {
  let best = 0;
  values.forEach((value, i) => {
    if (value > (values[best] as number)) best = i;
  });
  return best;
}

/** 1 where the answer with the largest log-likelihood is right. */
export function accuracy({ gold }: ChoiceItem, loglikelihoods: readonly number[]): ItemMetrics {
  return { acc: Number(gold.includes(indexOfLargest(loglikelihoods))) };
}

const kEncoder = new TextEncoder();

/**
 * Whether the preferred answer is right, by its log-likelihood (acc), by that divided by its characters, which are Unicode code
 * points (acc_norm), and by that divided by its bytes in UTF-8 (acc_bytes).
 */
export function normalizedAccuracies(
  item: ChoiceItem,
  loglikelihoods: readonly number[],
): ItemMetrics {
  const by = (length: (text: string) => number): number => {
    const scores = loglikelihoods.map((value, i) => value / length(item.choices[i] as string));
    return Number(item.gold.includes(indexOfLargest(scores)));
  };
  return {
    ...accuracy(item, loglikelihoods),
    acc_norm: by((text) => [...text].length),
    acc_bytes: by((text) => kEncoder.encode(text).length),
  };
}
