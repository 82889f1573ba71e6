// The numbers by which two training runs are compared: those of their steps, the trained values, and the calls of ops.
import type { TunedModel } from '../../lib/adapters/tuned_model.ts';
import type { Model } from '../../lib/models/index.ts';
import { opTimes } from '../../lib/runtime.ts';
import type { StepRecord } from '../../lib/train/types.ts';
import { values } from './compare.ts';

/** The values of BA-LoRA's terms in a record; null where a term is switched off or undefined. */
export function termValuesOf({ terms }: Pick<StepRecord, 'terms'>) {
  const { consistency, diversity, svd } = terms;
  return {
    consistency: consistency?.value ?? null,
    diversity: diversity?.value ?? null,
    svd: svd?.value ?? null,
  };
}

/** The loss, its terms and the norm of the gradients of a step. */
export const numbersOf = (record: StepRecord): number[] => {
  const { consistency, diversity, svd } = termValuesOf(record);
  return [record.loss, record.taskLoss, consistency, diversity, svd, record.gradNorm].map(Number);
};

/** The fields of a record that do not depend on the clock or the process. */
export const timeless = ({
  tokensPerSecond,
  elapsedSeconds,
  peakRssBytes,
  ...rest
}: StepRecord): Omit<StepRecord, 'tokensPerSecond' | 'elapsedSeconds' | 'peakRssBytes'> => rest;

/** The values of all trained tensors by name. */
export const stateValues = (tuned: Pick<TunedModel<Model>, 'state'>): Record<string, number[]> =>
  Object.fromEntries(
    Object.entries(tuned.state()).map(([name, t]) => [name, Array.from(values(t), Number)]),
  );

/** How often an op was called since the last resetOpTimes(). */
export const callsOf = (wanted: string): number =>
  opTimes()
    .filter(({ op }) => op === wanted)
    .reduce((total, { calls }) => total + calls, 0);
