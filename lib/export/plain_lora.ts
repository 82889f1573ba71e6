/** An adapter as pairs A, B on the untouched base, for formats that hold nothing else. */
import type { AdapterModel } from '../adapters/adapter_model.ts';
import { convertObstacle } from '../adapters/changes.ts';
import { loraObstacle, type PlainPair, plainPair } from '../adapters/export.ts';
import { UnsupportedError } from '../errors.ts';
import type { Model } from '../models/index.ts';

/**
 * Runs `body` with the pairs of the active adapter; those that are made for it are freed afterwards. A frozen first pair is part of
 * them: [A; A0], [B | -B0].
 * @param format the name of the format, for messages
 * @throws UnsupportedError for an adapter that is more than pairs
 */
export async function withPlainLora<T>(
  tuned: AdapterModel<Model>,
  format: string,
  body: (modules: readonly PlainPair[]) => Promise<T>,
): Promise<T> {
  const obstacle = plainObstacle(tuned);
  if (obstacle !== null) {
    const { reason, canConvert } = obstacle;
    const convert = canConvert
      ? 'write it as a plain LoRA of a chosen rank first (balora convert), '
      : '';
    throw new UnsupportedError(
      `${format} holds pairs A, B alone, and ${reason}; merge it into its base instead (safetensors, gguf), ${convert}or ` +
        'keep it as a PEFT folder (peft)',
    );
  }
  const modules = tuned.modules.map(plainPair);
  try {
    return await body(modules);
  } finally {
    for (const [i, { pair }] of modules.entries()) tuned.modules[i]?.release(pair);
  }
}

/** The number that occurs most often; never 0, by which none can be divided. */
export function mostFrequent(numbers: readonly number[]): number {
  const counts = new Map<number, number>();
  for (const number of numbers) counts.set(number, (counts.get(number) ?? 0) + 1);
  counts.delete(0);
  const [most] = [...counts].sort(([, a], [, b]) => b - a);
  return most?.[0] ?? 1;
}

/** The first thing that makes an adapter more than pairs, and whether `convertToLora` makes pairs of it; null: nothing does. */
function plainObstacle({ modules, saved, residual }: AdapterModel<Model>) {
  if (saved !== null && saved.parameters.length > 0) {
    const names = saved.parameters.map(({ name }) => name).join(', ');
    return { reason: `this adapter also trains whole modules (${names})`, canConvert: false };
  }
  if (residual !== null) {
    const reason = 'this adapter belongs on a residual of its base, not on the base itself';
    return { reason, canConvert: false };
  }
  for (const module of modules) {
    const reason = loraObstacle(module);
    if (reason !== null) return { reason, canConvert: convertObstacle(module) === null };
  }
  return null;
}
