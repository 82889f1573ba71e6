/** Settings as the commands share them: the defaults of the command line, and how a setting is read. */
import type { TrainSettings } from './train_options.ts';

/** What the command line chooses where the library leaves the choice open. */
export const kTrainDefaults = {
  method: 'balora',
  dtype: 'f32',
  device: 'cpu',
  perDeviceTrainBatchSize: 8,
  maxLength: 512,
  seed: 42,
  shuffle: true,
} as const satisfies Partial<TrainSettings>;

/** A name or a list of names as a list. */
export function listOf(value: string | string[] | undefined): string[] | undefined {
  return typeof value === 'string' ? [value] : value;
}

/** The given keys that have a value. */
export function pick<T extends object, const K extends keyof T>(
  from: T,
  keys: readonly K[],
): Pick<T, K> {
  return Object.fromEntries(
    keys.filter((key) => from[key] !== undefined).map((key) => [key, from[key]]),
  ) as Pick<T, K>;
}
