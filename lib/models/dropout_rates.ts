/**
 * Dropout that a configuration asks for and training here leaves out. Models have been trained with it; fine-tuning without it
 * is sound, but differs from what transformers does, so it is said.
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

/** A sentence that names what is left out, for a warning; null where the configuration asks for nothing. */
export function dropoutWarning({ modelType, dropoutRates }: Model): string | null {
  const rates = Object.entries(dropoutRates).map(([key, rate]) => `${key} ${rate}`);
  if (rates.length === 0) return null;
  return `the configuration of this ${modelType} model asks for dropout (${rates.join(', ')}), which training does not apply`;
}
