/** Checks that the labels of a classifier's data agree with those of its head and of the held-out data. */
import { indicesIn, type LabelScheme } from '../data/labels.ts';
import { ArgumentError } from '../errors.ts';

/**
 * Checks the labels of the training data against the head and the held-out data.
 * @throws ArgumentError where a label has another meaning for the head or in the held-out data
 */
export function checkLabels(
  head: readonly string[] | null,
  data: LabelScheme | undefined,
  held: LabelScheme | undefined,
): void {
  checkNames(head, data?.names);
  checkSchemes(data, held);
}

/**
 * Checks the label names of the data against those of the head. Without this check, data with sorted names could train and
 * score a head by the ids of other classes, and a head tuned on another task's data would be saved with its old label names.
 */
function checkNames(
  head: readonly string[] | null,
  data: readonly string[] | null | undefined,
): void {
  if (!head || !data) return;
  const places = indicesIn(data, head);
  if (places?.every((place, id) => place === id)) return;
  const fix =
    places === null
      ? 'load the model with newHead, or with labelNames: data.scheme.names where its ids stand for these'
      : 'make it with labelNames: model.labelNames';
  throw new ArgumentError(
    `data: its label ids stand for ${data.join(', ')}, those of the model's head for ${head.join(', ')}; ${fix}`,
  );
}

/**
 * Checks that the held-out data has the label scheme of the training data. Held-out data that lacks a class and derives a
 * scheme of its own would give the other classes shifted ids.
 */
function checkSchemes(data: LabelScheme | undefined, held: LabelScheme | undefined): void {
  if (data === undefined || held === undefined) return;
  const kinds = ['problemType', 'numLabels', 'names', 'ids'] as const;
  const differing = kinds.filter((key) => shown(data[key]) !== shown(held[key]));
  if (differing.length === 0) return;
  const which = differing.map((key) => `${key} ${shown(held[key])}, data has ${shown(data[key])}`);
  throw new ArgumentError(
    `evalData: its labels do not mean what those of data mean (${which.join('; ')}); make both with the same ` +
      'numLabels, problemType and labelNames, those of data.scheme, and the same glue',
  );
}

function shown(value: LabelScheme[keyof LabelScheme]): string {
  if (value === null || value === undefined) return 'none';
  return typeof value === 'object' ? value.join(', ') : String(value);
}
