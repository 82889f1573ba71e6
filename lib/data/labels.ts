/** Labels of rows: a class by id or name, a number, or D yes-or-no values. Options that are not given are inferred from the data. */
import { ArgumentError } from '../errors.ts';
import { kMaxLabels } from '../options/labels.ts';
import { shown } from '../shown.ts';

/** The meaning of a head's outputs: `problem_type` in config.json. */
export type LabelKind = 'single_label_classification' | 'regression' | 'multi_label_classification';

export interface LabelOptions {
  /**
   * Kind of the labels. Default: several labels where the first label is a list, regression where numLabels is 1, else one
   * class of several.
   */
  problemType?: LabelKind;
  /** D, the number of outputs of the head. Default: counted in the data. */
  numLabels?: number;
  /**
   * Class names by id, those of the model's head (`model.labelNames`) where it has been trained; null: not given. The data
   * may write them in another case, and a GLUE task's ids are translated. Default: the names found, sorted, or none where
   * labels are ids.
   */
  labelNames?: readonly string[] | null;
}

/** Options of the labels, with the class names that a task's ids stand for. */
export interface TaskLabelOptions extends LabelOptions {
  /** Class names by the ids that the data writes. */
  taskNames?: readonly string[];
}

/** The full meaning of the labels, given by options or found in the data. */
export interface LabelScheme {
  readonly problemType: LabelKind;
  readonly numLabels: number;
  readonly names: readonly string[] | null;
  /** Class id of each id in the data; left out where they are equal. */
  readonly ids?: readonly number[];
}

/** A label as it stands in a row: a class name or an id, a number, or a list of these. */
type Raw = string | number | readonly (string | number)[];

const kFewLabelsAdvice = {
  single_label_classification:
    "give labels of two classes, or pass problemType: 'regression' for numbers",
  multi_label_classification: 'write each label as a list of names, or of zeros and ones',
};

/**
 * Infers the options that are not given from all labels.
 * @throws ArgumentError for options that contradict each other or labels that cannot be understood
 */
export function resolveScheme(values: readonly unknown[], options: TaskLabelOptions): LabelScheme {
  const { numLabels, taskNames } = options;
  const labelNames = options.labelNames ?? undefined;
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
      `labels: numLabels is ${numLabels}, but ${labelNames.length} names are given (${labelNames.join(', ')}); give one name for each label`,
    );
  }
  if (problemType === 'regression') {
    const count = checkedCount(numLabels ?? listLength(values[0]) ?? 1);
    return { problemType, numLabels: count, names: null };
  }
  const names = labelNames ?? foundNames(values);
  if (numLabels !== undefined && names !== null && names.length !== numLabels) {
    throw new ArgumentError(
      `labels: the data names ${names.length} classes (${names.slice(0, 8).join(', ')}), numLabels is ${numLabels}; give the names of all labels as labelNames`,
    );
  }
  const count = checkedCount(numLabels ?? names?.length ?? countIds(values, problemType));
  const least = problemType === 'single_label_classification' ? 2 : 1;
  if (count < least) {
    throw new ArgumentError(
      `labels: ${problemType} needs at least ${least} labels, got ${count}; ${kFewLabelsAdvice[problemType]}`,
    );
  }
  const ids = taskNames && names ? indicesIn(taskNames, names) : null;
  const moved = ids?.some((place, id) => place !== id) ? ids : undefined;
  return { problemType, numLabels: count, names, ids: moved };
}

/** @throws ArgumentError for more labels than a head can have, as a number that is no label would ask for */
function checkedCount(count: number): number {
  if (count <= kMaxLabels) return count;
  throw new ArgumentError(
    `labels: the data ask for ${count} labels, and a head has at most ${kMaxLabels}; check that the field is the label's`,
  );
}

/** The index of a name in a list; case is ignored if there is no exact match and only one match without case. -1 if there is none. */
function indexOfName(name: string, names: readonly string[]): number {
  const exact = names.indexOf(name);
  if (exact >= 0) return exact;
  const folded = names.map((other) => other.toLowerCase());
  const first = folded.indexOf(name.toLowerCase());
  return first === folded.lastIndexOf(name.toLowerCase()) ? first : -1;
}

/** The index in `names` of each name in `from`; null unless both lists have the same names, in any order and case. */
export function indicesIn(from: readonly string[], names: readonly string[]): number[] | null {
  const places = from.map((name) => indexOfName(name, names));
  const found = new Set(places.filter((place) => place >= 0));
  return found.size === names.length && from.length === names.length ? places : null;
}

/**
 * Class names in the data, sorted; null where most labels are ids (a name among them is then a mistake), or lists of yes/no values.
 */
function foundNames(values: readonly unknown[]): string[] | null {
  const names = new Set<string>();
  let [named, ids] = [0, 0];
  for (const value of values) {
    for (const item of isList(value) ? (value as unknown[]) : [value]) {
      if (asWhole(item) !== null) ids++;
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
  return values.reduce<number>((most, value) => Math.max(most, (asWhole(value) ?? -1) + 1), 0);
}

/**
 * Converts the label of a row to numbers: one class id, D numbers, or D zeros and ones.
 * @throws ArgumentError for a label that does not fit the scheme, without the name of its field
 */
export function parseLabel(value: unknown, scheme: LabelScheme): number[] {
  const { problemType, numLabels, names } = scheme;
  if (problemType === 'regression') return numbersOf(value, numLabels);
  if (problemType === 'single_label_classification') return [classId(value, scheme)];
  if (!isList(value)) throw new ArgumentError(`must be a list, got ${shown(value)}`);
  const items = value as readonly unknown[];
  if (names !== null && items.every((item) => typeof item === 'string')) {
    const row = Array<number>(numLabels).fill(0);
    for (const item of items) row[classId(item, scheme)] = 1;
    return row;
  }
  const row = numbersOf(value, numLabels);
  const odd = row.find((item) => item !== 0 && item !== 1);
  if (odd !== undefined) throw new ArgumentError(`must hold zeros and ones, got ${odd}`);
  return row;
}

function classId(value: unknown, { numLabels, names, ids }: LabelScheme): number {
  const name = typeof value === 'string' || typeof value === 'number' ? String(value) : null;
  const exact = name === null ? -1 : (names?.indexOf(name) ?? -1);
  if (exact >= 0) return exact;
  const id = asWhole(value);
  // Where names are numbers, a number is a name.
  const isId = names?.every((name) => asWhole(name) === null) ?? true;
  if (id !== null && isId && id >= 0 && id < numLabels) return ids?.[id] ?? id;
  const alike = names === null || name === null ? -1 : indexOfName(name, names);
  if (alike >= 0) return alike;
  const known = names === null ? '' : ` or of the names ${names.join(', ')}`;
  throw new ArgumentError(
    `must be one of the ids 0..${numLabels - 1} (numLabels ${numLabels})${known}, got ${shown(value)}`,
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

/** The label in a row, in which a text that is a JSON list becomes a list. */
export function rawLabel(value: unknown): Raw | null {
  if (typeof value === 'string' && value.startsWith('[')) {
    try {
      return JSON.parse(value) as Raw;
    } catch {
      return value;
    }
  }
  return (typeof value === 'boolean' ? Number(value) : value) as Raw | null;
}

function asWhole(value: unknown): number | null {
  if (typeof value === 'number') return Number.isInteger(value) ? value : null;
  return typeof value === 'string' && /^-?\d+$/.test(value.trim()) ? Number(value) : null;
}

const isList = (value: unknown): boolean => Array.isArray(value) || ArrayBuffer.isView(value);
const listLength = (value: unknown): number | null =>
  isList(value) ? (value as ArrayLike<unknown>).length : null;
