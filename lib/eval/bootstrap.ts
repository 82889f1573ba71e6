/** Confidence intervals of a task's numbers, by the bootstrap over items (Efron 1979), percentiles. */
import { setImmediate as nextTurn } from 'node:timers/promises';
import { checkKeys } from '../options/call.ts';
import { PythonRandom } from './python_random.ts';
import type { ItemResult, TaskMetrics } from './tasks/task.ts';

/** Options of {@link confidenceIntervals}. */
export interface BootstrapOptions {
  /** Samples of as many items, drawn with replacement. Default 1000. */
  readonly resamples?: number;
  /** Default 1234. */
  readonly seed?: number;
  /** Share of the samples within the interval. Default 0.95. */
  readonly level?: number;
  readonly signal?: AbortSignal | undefined;
}

/** Least and largest value of an interval. */
export type Interval = readonly [low: number, high: number];

/** Milliseconds of work after which other callbacks of the process get their turn. */
const kTurnMs = 8;

/**
 * Computes the interval of each number that a summary of items gives. The draws depend on the seed and the number of items alone.
 * @param summarize computes the numbers of a sample of items
 * @returns intervals by name; null for a number that is null in the summary of all items, and for all numbers of one item alone, of which
 *   every sample is the same
 */
export async function confidenceIntervals(
  items: readonly ItemResult[],
  summarize: (items: readonly ItemResult[]) => TaskMetrics,
  options: BootstrapOptions = {},
): Promise<Readonly<Record<string, Interval | null>>> {
  checkKeys('confidenceIntervals', options, 'resamples seed level signal');
  const { resamples = 1000, seed = 1234, level = 0.95, signal } = options;
  const whole = summarize(items);
  if (items.length < 2) return Object.fromEntries(Object.keys(whole).map((name) => [name, null]));
  const values = Object.keys(whole).map((name) => ({ name, of: [] as number[] }));
  const random = new PythonRandom(seed);
  let turn = performance.now();
  for (let n = 0; n < resamples; n++) {
    const sample = summarize(items.map(() => items[random.below(items.length)] as ItemResult));
    for (const { name, of } of values) {
      const value = sample[name];
      if (typeof value === 'number' && !Number.isNaN(value)) of.push(value);
    }
    if (performance.now() - turn < kTurnMs) continue;
    await nextTurn();
    signal?.throwIfAborted();
    turn = performance.now();
  }
  return Object.fromEntries(
    values.map(({ name, of }) => [name, whole[name] === null ? null : middle(of, level)]),
  );
}

/** The interval between the percentiles that leave out equal shares at both ends; null: there are no values. */
function middle(values: number[], level: number): Interval | null {
  if (values.length === 0) return null;
  const sorted = values.sort((a, b) => a - b);
  const at = (share: number): number => {
    const place = share * (sorted.length - 1);
    const [below, above] = [sorted[Math.floor(place)], sorted[Math.ceil(place)]] as [
      number,
      number,
    ];
    return below + (above - below) * (place - Math.floor(place));
  };
  return [at((1 - level) / 2), at((1 + level) / 2)];
}
