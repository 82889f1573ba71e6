/** The labels of a classifier's data, held against those of its head and of the held-out data. */
import { type LabelScheme, placesIn } from '../data/labels.ts';
import { ArgumentError } from '../errors.ts';

/** @throws ArgumentError for labels that mean something else to the head, or to the held-out data */
export function checkLabels(
  head: readonly string[] | null,
  data: LabelScheme | undefined,
  held: LabelScheme | undefined,
): void {
  checkNames(head, data?.names);
  checkSchemes(data, held);
}

/**
 * Data whose names were sorted, say, would train and judge a head by the ids of others of its classes; of another task's data
 * what is saved would keep the old names.
 */
function checkNames(
  head: readonly string[] | null,
  data: readonly string[] | null | undefined,
): void {
  if (!head || !data) return;
  const places = placesIn(data, head);
  if (places?.every((place, id) => place === id)) return;
  const fix =
    places === null
      ? 'load the model with newHead, or with labelNames: data.scheme.names where its ids stand for these'
      : 'make it with labelNames: model.labelNames';
  throw new ArgumentError(
    `data: its label ids stand for ${data.join(', ')}, those of the model's head for ${head.join(', ')}: ${fix}`,
  );
}

/** Held-out data that derives its own scheme and lacks a class would give the others shifted ids. */
function checkSchemes(data: LabelScheme | undefined, held: LabelScheme | undefined): void {
  if (data === undefined || held === undefined) return;
  const kinds = ['problemType', 'numLabels', 'names', 'ids'] as const;
  const differing = kinds.filter((key) => shown(data[key]) !== shown(held[key]));
  if (differing.length === 0) return;
  const which = differing.map((key) => `${key} ${shown(held[key])}, data has ${shown(data[key])}`);
  throw new ArgumentError(
    `evalData: its labels do not mean what those of data mean (${which.join('; ')}): make both with the same ` +
      'numLabels, problemType and labelNames, those of data.scheme, and the same glue',
  );
}

function shown(value: LabelScheme[keyof LabelScheme]): string {
  if (value === null || value === undefined) return 'none';
  return typeof value === 'object' ? value.join(', ') : String(value);
}
