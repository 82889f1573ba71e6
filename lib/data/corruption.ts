/**
 * Corruptions of training data on purpose, for studies of what a model inherits from faulty data. They change rows, so that every task
 * has them, and are a pure function of the rows, the options and the seed: first rows of a class are left out, then labels replaced, rows
 * doubled, and the words of each row's texts changed when it is read.
 */
import { ArgumentError } from '../errors.ts';
import {
  checkTogether,
  checkValue,
  DEFAULT_SEED,
  isObject,
  type Option,
} from '../options/option.ts';
import { shown } from '../shown.ts';
import {
  type CorruptionOptions,
  corruptionChecks,
  corruptionOptions,
  TEXT_NOISE_KINDS,
  type TextNoiseKind,
} from './corruption_options.ts';
import { type DatasetOptions, type DataWarning, forEachRow } from './dataset.ts';
import { listValue } from './forms/fields.ts';
import { rawLabel } from './labels.ts';
import { choiceOf, fileOf } from './mixed_rows.ts';
import { type RandomWords, randomBelow, randomOrder, randomWords } from './philox.ts';
import { type Row, type RowFile, type RowSource, withRowLocation } from './rows.ts';
import { noisyText } from './text_noise.ts';

/** Counts of what was corrupted. */
export interface CorruptionCounts {
  readonly seed: number;
  /** Number of rows of the files. */
  readonly rows: number;
  /** Number of rows of the rare class that were left out. */
  readonly removedRows: number;
  readonly replacedLabels: number;
  /** Number of rows that come twice. */
  readonly duplicatedRows: number;
  /** Number of words that were changed, dropped or moved, those of doubled rows once. */
  readonly changedWords: number;
}

/** The columns of a file that are corrupted. */
export interface CorruptedColumns {
  readonly texts: readonly string[];
  /** The column of the label; undefined: rows have none. */
  readonly label?: string;
}

/** Numbers that separate the uses of the seed: the rows to leave out, the labels, the doubled rows, the words. */
const kStreams = {
  removed: 0x636c6173,
  labels: 0x6c61626c,
  doubled: 0x6475706c,
  words: 0x776f7264,
};

/**
 * Rows with the corruptions that the options ask for.
 * @param columns those of each file
 * @returns the given rows where nothing is asked for
 * @throws ArgumentError for options that are out of range or exclude each other, for rows whose label is no class, and for an imbalance
 *   that the data have already
 */
export async function corruptRows(
  rows: RowSource,
  columns: readonly CorruptedColumns[],
  {
    corruption = {},
    seed = DEFAULT_SEED,
    signal,
  }: Pick<DatasetOptions, 'corruption' | 'seed' | 'signal'>,
): Promise<RowSource> {
  const options = checkedCorruption(corruption);
  if (options === null) return rows;
  const settings = { ...options, seed: options.corruptionSeed ?? seed };
  const { labelNoise = 0, classImbalance } = settings;
  const needsLabels = labelNoise > 0 || classImbalance !== undefined;
  const labels = needsLabels ? await readLabels(rows, columns, signal) : null;
  return new CorruptedRows(rows, columns, planOf(rows.length, labels, settings));
}

/** The counts of corrupted rows for the statistics of the data, which are also reported as a warning. */
export function reportCorruption(
  corrupted: RowSource,
  { onWarning }: { onWarning?: (warning: DataWarning) => void },
): CorruptionCounts | undefined {
  if (!(corrupted instanceof CorruptedRows)) return undefined;
  const { counts } = corrupted;
  const { rows, removedRows, replacedLabels, duplicatedRows, changedWords, seed } = counts;
  const message =
    `corrupted on purpose, with seed ${seed}: ${removedRows} of ${rows} rows left out, ${replacedLabels} labels replaced, ` +
    `${duplicatedRows} rows doubled, ${changedWords} words changed`;
  onWarning?.({ code: 'data_corrupted', message });
  return counts;
}

/**
 * Checks the options.
 * @returns those that corrupt anything; null where none does
 * @throws ArgumentError naming the option
 */
function checkedCorruption(given: CorruptionOptions): CorruptionOptions | null {
  const entries = Object.entries(given).filter(([, value]) => value !== undefined);
  for (const [key, value] of entries) {
    if (!Object.hasOwn(corruptionOptions, key)) {
      const names = Object.keys(corruptionOptions).join(', ');
      throw new ArgumentError(`corruption: there is no option ${key}; there are ${names}`);
    }
    checkValue(key, corruptionOptions[key as keyof typeof corruptionOptions] as Option, value);
  }
  const options = Object.fromEntries(entries) as CorruptionOptions;
  checkTogether(corruptionChecks, options);
  const { labelNoise = 0, classImbalance, textNoise = 0, duplicateRows = 0 } = options;
  const isOff =
    labelNoise === 0 && classImbalance === undefined && textNoise === 0 && duplicateRows === 0;
  return isOff ? null : options;
}

type Settings = CorruptionOptions & { readonly seed: number };

/** The classes of rows: the class of each row, and the value of each class as the data write it first. */
interface Classes {
  readonly ofRow: readonly string[];
  readonly values: ReadonlyMap<string, unknown>;
}

async function readLabels(
  rows: RowSource,
  columns: readonly CorruptedColumns[],
  signal: AbortSignal | undefined,
): Promise<Classes> {
  const ofRow: string[] = [];
  const values = new Map<string, unknown>();
  await forEachRow(rows, { signal }, async (index) => {
    const row = await rows.row(index);
    await withRowLocation(rows, index, () => {
      const { label } = choiceOf(columns, rows, index);
      const name = classOf(row, label);
      if (!values.has(name)) values.set(name, row[label as string]);
      ofRow.push(name);
    });
  });
  return { ofRow, values };
}

/** The name of a row's class. @throws ArgumentError for rows without labels, and labels that are no class */
function classOf(row: Row, field: string | undefined): string {
  if (field === undefined) {
    throw new ArgumentError('labelNoise and classImbalance are for labelled rows; leave them out');
  }
  const label = rawLabel(Object.hasOwn(row, field) ? row[field] : undefined);
  if (typeof label === 'string') return label;
  if (typeof label === 'number' && Number.isInteger(label)) return String(label);
  throw new ArgumentError(
    `field '${field}': labelNoise and classImbalance are for rows with one class each, got ${shown(label, 40)}`,
  );
}

/** The changes of the rows. */
interface Plan {
  readonly settings: Settings;
  /** Rows of the files, in the order and as often as they come. */
  readonly sources: Uint32Array;
  /** The new label of each row whose label is replaced. */
  readonly labels: ReadonlyMap<number, unknown>;
  readonly removedRows: number;
  readonly duplicatedRows: number;
}

function planOf(length: number, classes: Classes | null, settings: Settings): Plan {
  const kept = keptRows(length, classes, settings);
  const labels = newLabels(kept, classes, settings);
  const { duplicateRows = 0 } = settings;
  const doubled = new Set(chosen(kept, duplicateRows, drawsOf(settings, kStreams.doubled)));
  const sources = kept.flatMap((row) => (doubled.has(row) ? [row, row] : [row]));
  return {
    settings,
    sources: Uint32Array.from(sources),
    labels,
    removedRows: length - kept.length,
    duplicatedRows: doubled.size,
  };
}

const drawsOf = ({ seed }: Settings, stream: number): RandomWords =>
  randomWords({ seed, stream, index: 0 });

/** A share of some rows, drawn without repetition. */
function chosen(rows: readonly number[], share: number, next: RandomWords): number[] {
  const order = randomOrder(rows.length, next);
  return Array.from(order.subarray(0, Math.round(share * rows.length)), (i) => rows[i] as number);
}

/** The rows that remain where a class is made rare. @throws ArgumentError for a class that the data lack, or that is as rare already */
function keptRows(length: number, classes: Classes | null, settings: Settings): number[] {
  const all = Array.from({ length }, (_, i) => i);
  const { classImbalance, rareClass } = settings;
  if (classes === null || classImbalance === undefined) return all;
  const sizes = new Map([...classes.values.keys()].map((name) => [name, 0]));
  for (const name of classes.ofRow) sizes.set(name, (sizes.get(name) as number) + 1);
  const names = [...sizes.keys()].sort();
  const size = (name: string) => sizes.get(name) as number;
  const rare = rareClass ?? names.reduce((a, b) => (size(b) < size(a) ? b : a));
  if (!sizes.has(rare) || names.length < 2) {
    throw new ArgumentError(
      `rareClass must be one of several classes of the data (${names.join(', ')}), got ${shown(rare)}`,
    );
  }
  const largest = Math.max(...names.filter((name) => name !== rare).map(size));
  const left = Math.max(1, Math.round(largest / classImbalance));
  if (left >= size(rare)) {
    throw new ArgumentError(
      `classImbalance ${classImbalance} leaves ${left} rows of the class ${rare}, and there are only ${size(rare)}; give a larger number or another rareClass`,
    );
  }
  const own = all.filter((row) => classes.ofRow[row] === rare);
  const order = randomOrder(own.length, drawsOf(settings, kStreams.removed));
  const stay = new Set(Array.from(order.subarray(0, left), (i) => own[i] as number));
  return all.filter((row) => classes.ofRow[row] !== rare || stay.has(row));
}

/** New labels for a share of the rows, each another one than the row has. @throws ArgumentError where the data have one class only */
function newLabels(
  kept: readonly number[],
  classes: Classes | null,
  settings: Settings,
): Map<number, unknown> {
  const { labelNoise = 0 } = settings;
  const labels = new Map<number, unknown>();
  if (classes === null || labelNoise === 0) return labels;
  const names = [...classes.values.keys()].sort();
  if (names.length < 2) {
    throw new ArgumentError(
      `labelNoise needs rows of two classes or more, and all have the label ${names[0]}`,
    );
  }
  const next = drawsOf(settings, kStreams.labels);
  for (const row of chosen(kept, labelNoise, next)) {
    const others = names.filter((name) => name !== classes.ofRow[row]);
    labels.set(row, classes.values.get(others[randomBelow(next, others.length)] as string));
  }
  return labels;
}

/** Rows of a source with corruptions. */
export class CorruptedRows implements RowSource {
  readonly length: number;
  readonly files?: readonly RowFile[];
  /** Number of words that are changed in each row of the files; 0 before it is read for the first time. */
  readonly #words: Uint32Array;

  constructor(
    private readonly rows: RowSource,
    private readonly columns: readonly CorruptedColumns[],
    private readonly plan: Plan,
  ) {
    this.#words = new Uint32Array(rows.length);
    this.length = plan.sources.length;
    if (rows.files !== undefined) this.files = filesOf(rows, rows.files, plan.sources);
  }

  get recipe(): object {
    return { corruption: this.plan.settings };
  }

  /** The counts; those of words are of the rows that were read. */
  get counts(): CorruptionCounts {
    const { settings, labels, removedRows, duplicatedRows } = this.plan;
    return {
      seed: settings.seed,
      rows: this.rows.length,
      removedRows,
      replacedLabels: labels.size,
      duplicatedRows,
      changedWords: this.#words.reduce((sum, words) => sum + words, 0),
    };
  }

  async row(index: number): Promise<Row> {
    const source = this.#source(index);
    const row = await this.rows.row(source);
    const { texts, label } = choiceOf(this.columns, this.rows, source);
    const { labels, settings } = this.plan;
    const relabelled =
      label !== undefined && labels.has(source) ? { ...row, [label]: labels.get(source) } : row;
    return (settings.textNoise ?? 0) > 0 ? this.#noisy(relabelled, texts, source) : relabelled;
  }

  where(index: number): Promise<string> {
    return this.rows.where(this.#source(index));
  }

  close(): Promise<void> {
    return this.rows.close();
  }

  #source(index: number): number {
    const source = this.plan.sources[index];
    if (source !== undefined) return source;
    throw new ArgumentError(
      `data: there are ${this.length} rows after the corruptions, no row ${index}; ask for one from 0 to ${this.length - 1}`,
    );
  }

  #noisy(row: Row, texts: readonly string[], source: number): Row {
    const { seed, textNoise = 0, textNoiseKinds = TEXT_NOISE_KINDS } = this.plan.settings;
    const next = randomWords({ seed, stream: kStreams.words, index: source });
    const options = { share: textNoise, kinds: textNoiseKinds as readonly TextNoiseKind[], next };
    let words = 0;
    const noisy = (value: unknown): unknown =>
      mapTexts(value, (text) => {
        const changed = noisyText(text, options);
        words += changed.words;
        return changed.text;
      });
    const own = texts.filter((field) => Object.hasOwn(row, field));
    const changed = own.map((field) => [field, noisy(listValue(row, field))] as const);
    this.#words[source] = words;
    return { ...row, ...Object.fromEntries(changed) };
  }
}

/** Keys of a message whose values are texts that a model reads. */
const kTextKeys: readonly string[] = ['content', 'value', 'text'];

/** A value with its texts changed: those of lists, and in messages of the keys that hold a text. */
function mapTexts(value: unknown, change: (text: string) => string): unknown {
  if (typeof value === 'string') return change(value);
  if (Array.isArray(value)) return value.map((part) => mapTexts(part, change));
  if (!isObject(value)) return value;
  return Object.fromEntries(
    Object.entries(value).map(([key, part]) => [
      key,
      kTextKeys.includes(key) ? mapTexts(part, change) : part,
    ]),
  );
}

/** The files of corrupted rows: the same ones, with other counts. */
function filesOf(
  rows: RowSource,
  files: readonly RowFile[],
  sources: Uint32Array,
): readonly RowFile[] {
  const lengths = files.map(() => 0);
  for (const source of sources) {
    const file = fileOf(rows, source);
    lengths[file] = (lengths[file] as number) + 1;
  }
  let start = 0;
  return files.map(({ weight }, i) => {
    const length = lengths[i] as number;
    const file = { start, length, weight };
    start += length;
    return file;
  });
}
