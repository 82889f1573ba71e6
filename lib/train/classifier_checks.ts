/** What a classifier's run is refused for before its first step. */
import type { LabelScheme } from '../data/labels.ts';
import { ArgumentError } from '../errors.ts';
import type { ResolvedOptions } from './options.ts';
import type { ClassifierTrainerOptions } from './trainer_options.ts';

/** @throws ArgumentError for a loss, a schedule that has no meaning, or held-out labels that mean something else */
export function checkClassifierRun(
  input: ClassifierTrainerOptions,
  { regularizers }: ResolvedOptions,
): void {
  // The types have no such option; a program in JavaScript may give it all the same.
  if ('loss' in input && input.loss !== undefined) {
    throw new ArgumentError(
      "loss: a loss of one's own is for language models; a classifier's is its task's and the regularizers: leave it out",
    );
  }
  const { consistencySchedule, consistencyWeight } = regularizers;
  const { problemType } = input.tuned.model;
  // The adaptive schedule asks how sure the teacher is of its classes; numbers have none.
  if (problemType === 'regression' && consistencyWeight > 0 && consistencySchedule === 'adaptive') {
    throw new ArgumentError('consistencySchedule adaptive has no meaning for regression');
  }
  checkSchemes(input.data.scheme, input.evalData?.scheme);
}

/** Held-out data that derives its own scheme and lacks a class would give the others shifted ids. */
function checkSchemes(data: LabelScheme | undefined, held: LabelScheme | undefined): void {
  if (data === undefined || held === undefined) return;
  const kinds = ['problemType', 'numLabels', 'names'] as const;
  const differing = kinds.filter((key) => shown(data[key]) !== shown(held[key]));
  if (differing.length === 0) return;
  const which = differing.map((key) => `${key} ${shown(held[key])}, data has ${shown(data[key])}`);
  throw new ArgumentError(
    `evalData: its labels do not mean what those of data mean (${which.join('; ')}): make both with the same ` +
      'numLabels, problemType and labelNames, those of data.scheme',
  );
}

function shown(value: LabelScheme[keyof LabelScheme]): string {
  if (value === null) return 'none';
  return typeof value === 'object' ? value.join(', ') : String(value);
}
