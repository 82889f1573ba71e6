/**
 * Names of the label ids of a trained head. A head keeps the order of labels that it was trained with, so data whose names are
 * sorted, or stand in GLUE's order, must be read in the head's order; else ids would be compared with those of other classes.
 */
import { glueTask } from '../../data/glue.ts';
import { indicesIn, type LabelScheme } from '../../data/labels.ts';
import { listOf } from '../option_table.ts';
import type { Progress } from '../progress.ts';
import type { TrainSettings } from '../train_options.ts';
import type { TrainedHead } from './classifier_load.ts';

/** The settings by which a user describes the labels. */
type LabelSettings = Pick<TrainSettings, 'numLabels' | 'labelNames' | 'glue'>;

/**
 * The names, by id, with which labels are read: those of the head, unless the user or the GLUE task gives other ones. The user
 * is informed where the head's order is used and where it is overridden.
 * @returns undefined where the head does not decide the names
 */
export function namesOfHead(
  { names, labels, where }: TrainedHead,
  { numLabels = labels, labelNames, glue }: LabelSettings,
  progress: Progress,
): readonly string[] | undefined {
  if (names === null || labels < 2 || numLabels !== labels) return undefined;
  const given = listOf(labelNames);
  const [others, source] =
    given !== undefined
      ? [given, '--label-names']
      : [glue === undefined ? null : glueTask(glue).labelNames, `--glue ${glue}`];
  const theirs = others ?? names;
  const places = indicesIn(theirs, names);
  const own = `the label ids of ${where} stand for ${shown(names)}`;
  if (given === undefined && places !== null) {
    progress.message(`${own}; pass --label-names if the data has other labels`);
    return names;
  }
  if (places === null || places.some((place, id) => place !== id)) {
    progress.warn(
      `${own}, but ${source} reads them as ${shown(theirs)}; check which of the two is meant`,
    );
  }
  return undefined;
}

/** Warns that label ids are guessed: the head does not record its names, so the names in the data are sorted. */
export function warnOfGuessedLabels(
  head: TrainedHead,
  { names }: LabelScheme,
  { labelNames, glue, progress }: LabelSettings & { progress: Progress },
): void {
  if (head.names !== null || names === null) return;
  if (labelNames !== undefined || glue !== undefined) return;
  progress.warn(
    `${head.where} does not say what its label ids stand for, so they are read as ${shown(names)}, the sorted names in the ` +
      'data; pass --label-names for another order',
  );
}

const kShown = 8;

function shown(names: readonly string[]): string {
  const more = names.length > kShown ? `, and ${names.length - kShown} more` : '';
  return names.slice(0, kShown).join(', ') + more;
}
