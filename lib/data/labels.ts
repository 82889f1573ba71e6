/** Labels of a row: a class by id or name, a number, or D yes/no values; and what is not said about them, from the data. */
import { ArgumentError } from '../errors.ts';

/** What the outputs of a head mean, in config.json's words. */
export type LabelKind = 'single_label_classification' | 'regression' | 'multi_label_classification';

export interface LabelOptions {
  /** Default: several labels where the first label is a list, regression where numLabels is 1, else one class of several. */
  problemType?: LabelKind;
  /** D, outputs of the head. Default: counted in the data. */
  numLabels?: number;
  /** Class names by id, where the data writes names. Default: the names found, sorted, or none where labels are ids. */
  labelNames?: readonly string[];
}

/** Everything known about the labels. */
export interface LabelScheme {
  readonly problemType: LabelKind;
  readonly numLabels: number;
  readonly names: readonly string[] | null;
}

/** A label as it stands in a row: a class name or an id, a number, or a list of these. */
type Raw = string | number | readonly (string | number)[];

/**
 * Fills in what the options leave open by looking at all labels.
 * @throws ArgumentError for options that contradict each other or labels that cannot be understood
 */
export function resolveScheme(values: readonly unknown[], options: LabelOptions): LabelScheme {
  const { labelNames, numLabels } = options;
  const lists = isList(values[0]);
  const problemType =
    options.problemType ??
    (lists
      ? 'multi_label_classification'
      : numLabels === 1
        ? 'regression'
        : 'single_label_classification');
  if (numLabels !== undefined && labelNames !== undefined && numLabels !== labelNames.length) {
    throw new ArgumentError(
      `labels: numLabels is ${numLabels}, but ${labelNames.length} names are given (${labelNames.join(', ')})`,
    );
  }
  if (problemType === 'regression') {
    return { problemType, numLabels: numLabels ?? listLength(values[0]) ?? 1, names: null };
  }
  const names = labelNames ?? foundNames(values);
  if (numLabels !== undefined && names !== null && names.length !== numLabels) {
    throw new ArgumentError(
      `labels: the data names ${names.length} classes (${names.slice(0, 8).join(', ')}), numLabels is ${numLabels}: give labelNames (--label-names)`,
    );
  }
  const count = numLabels ?? names?.length ?? countIds(values, problemType);
  const least = problemType === 'single_label_classification' ? 2 : 1;
  if (count < least) {
    throw new ArgumentError(
      `labels: ${problemType} needs ${least} labels at least, there ${count === 1 ? 'is' : 'are'} ${count}; ` +
        'a number to predict is problemType regression (--problem-type)',
    );
  }
  return { problemType, numLabels: count, names };
}

/** The names used, sorted; null where most labels are ids (a name among them is then a mistake), or rows of yes/no. */
function foundNames(values: readonly unknown[]): string[] | null {
  const names = new Set<string>();
  let [named, ids] = [0, 0];
  for (const value of values) {
    for (const item of isList(value) ? (value as unknown[]) : [value]) {
      if (wholeNumber(item) !== null) ids++;
      else if (typeof item === 'string') {
        names.add(item);
        named++;
      }
    }
  }
  return named === 0 || named < ids ? null : [...names].sort();
}

function countIds(values: readonly unknown[], kind: LabelKind): number {
  if (kind === 'multi_label_classification') return listLength(values[0]) ?? 0;
  return values.reduce<number>((most, value) => Math.max(most, (wholeNumber(value) ?? -1) + 1), 0);
}

/**
 * The numbers of a row's label: one class id, D numbers, or D zeros and ones.
 * @throws ArgumentError saying what is wrong with it
 */
export function parseLabel(
  value: unknown,
  { problemType, numLabels, names }: LabelScheme,
): number[] {
  if (problemType === 'regression') return numbersOf(value, numLabels);
  if (problemType === 'single_label_classification') return [classId(value, numLabels, names)];
  if (!isList(value)) throw new ArgumentError(`must be a list, got ${shown(value)}`);
  const items = value as readonly unknown[];
  if (names !== null && items.every((item) => typeof item === 'string')) {
    const row = Array<number>(numLabels).fill(0);
    for (const item of items) row[classId(item, numLabels, names)] = 1;
    return row;
  }
  const row = numbersOf(value, numLabels);
  const odd = row.find((item) => item !== 0 && item !== 1);
  if (odd !== undefined) throw new ArgumentError(`must hold zeros and ones, got ${odd}`);
  return row;
}

function classId(value: unknown, numLabels: number, names: readonly string[] | null): number {
  const named = names?.indexOf(String(value)) ?? -1;
  if (named >= 0) return named;
  const id = wholeNumber(value);
  if (id !== null && id >= 0 && id < numLabels) return id;
  const known = names === null ? '' : `, and none of the names ${names.join(', ')}`;
  throw new ArgumentError(
    `${shown(value)} is not one of the ids 0..${numLabels - 1} (numLabels ${numLabels})${known}`,
  );
}

function numbersOf(value: unknown, count: number): number[] {
  const items = isList(value) ? (value as readonly unknown[]) : [value];
  if (items.length !== count) {
    throw new ArgumentError(`must hold ${count} number(s), got ${items.length}: ${shown(value)}`);
  }
  return items.map((item) => {
    const number = typeof item === 'string' && item.trim() !== '' ? Number(item) : item;
    if (typeof number === 'number' && Number.isFinite(number)) return number;
    throw new ArgumentError(`must be a finite number, got ${shown(item)}`);
  });
}

/** JSON lists may stand in a text file's field. */
export function readRaw(value: unknown): Raw | null {
  if (typeof value === 'string' && value.startsWith('[')) {
    try {
      return JSON.parse(value) as Raw;
    } catch {
      return value;
    }
  }
  return (typeof value === 'boolean' ? Number(value) : value) as Raw | null;
}

function wholeNumber(value: unknown): number | null {
  if (typeof value === 'number') return Number.isInteger(value) ? value : null;
  return typeof value === 'string' && /^-?\d+$/.test(value.trim()) ? Number(value) : null;
}

const isList = (value: unknown): boolean => Array.isArray(value) || ArrayBuffer.isView(value);
const listLength = (value: unknown): number | null =>
  isList(value) ? (value as ArrayLike<unknown>).length : null;
const shown = (value: unknown): string => (value === undefined ? 'nothing' : JSON.stringify(value));
