/**
 * Dropout rates of a configuration, which training does not apply. Fine-tuning without dropout is sound, but it differs from what
 * transformers does, so a run warns about it.
 */
import type { Model } from './model.ts';

/** The rates of a configuration that are above 0, by their keys. */
export function statedRates(
  source: Readonly<Record<string, unknown>>,
  keys: readonly string[],
): Readonly<Record<string, number>> {
  const rates = keys.map((key) => [key, source[key]] as const);
  return Object.fromEntries(
    rates.filter(
      (entry): entry is [string, number] => typeof entry[1] === 'number' && entry[1] > 0,
    ),
  );
}

/** A warning that names the rates that are not applied; null where the configuration has none. */
export function dropoutWarning({ modelType, dropoutRates }: Model): string | null {
  const rates = Object.entries(dropoutRates).map(([key, rate]) => `${key} ${rate}`);
  if (rates.length === 0) return null;
  return `the configuration of this ${modelType} model asks for dropout (${rates.join(', ')}), which training does not apply`;
}
