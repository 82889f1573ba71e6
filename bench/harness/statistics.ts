/** Small statistics of repeated measurements. */
import { ArgumentError } from '../../lib/errors.ts';
import type { Spread } from './types.ts';

/** The median of values. @throws ArgumentError for an empty list */
export function median(values: readonly number[]): number {
  if (values.length === 0) throw new ArgumentError('median: there are no values');
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  const upper = sorted[middle] as number;
  return sorted.length % 2 === 1 ? upper : ((sorted[middle - 1] as number) + upper) / 2;
}

export function spread(values: readonly number[]): Spread {
  return {
    median: median(values),
    low: Math.min(...values),
    high: Math.max(...values),
    samples: values.length,
  };
}

export function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}

export function mean(values: readonly number[]): number {
  return sum(values) / values.length;
}
