/** Items of a task from a file of its data. */
import { openRows } from '../data/open_rows.ts';
import { arrayRows, type Row, type RowSource, withRowLocation } from '../data/rows.ts';
import { ArgumentError, FormatError } from '../errors.ts';
import { readText } from '../io/regular_file.ts';
import { Fields } from './tasks/fields.ts';
import { SCORING_TASKS } from './tasks/registry.ts';
import type { ScoringTask } from './tasks/task.ts';

/** The items of a task. */
export type ItemOf<T extends ScoringTask> = ReturnType<T['read']>;

/** Options of {@link readItems}. */
export interface ReadItemsOptions {
  /** Number of items to read at most, from the first on. Default: all. */
  readonly limit?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

const kText = /\.(txt|md)$/i;
const kArray = /\.json$/i;

/** The largest file that is read as a whole: a JSON array or plain text. */
const kMaxWholeBytes = 256 * 2 ** 20;

/**
 * Reads the items of a task: a row each of JSON Lines, a JSON array, CSV, TSV or Parquet; for `documents` also a plain text.
 * @throws ArgumentError naming file, line and field for a row that the task cannot read; where all its fields are those of another
 *   task, the message says so. Errors of the file itself are those of its reader
 */
export async function readItems<T extends ScoringTask>(
  path: string,
  task: T,
  { limit = Number.POSITIVE_INFINITY, signal }: ReadItemsOptions = {},
): Promise<ItemOf<T>[]> {
  if (kText.test(path)) return [await textItem(path, task)] as ItemOf<T>[];
  const rows = await openTaskRows(path, task, signal);
  try {
    const items: ItemOf<T>[] = [];
    const count = Math.min(limit, rows.length);
    for (let i = 0; i < count; i++) {
      signal?.throwIfAborted();
      const row = await rows.row(i);
      items.push(await withRowLocation(rows, i, () => itemOf(row, task) as ItemOf<T>));
    }
    return items;
  } finally {
    await rows.close();
  }
}

function itemOf(row: Row, task: ScoringTask): unknown {
  const fields = new Fields(row);
  if (task.fields.some((names) => fields.has(...names))) return task.read(fields);
  const [first] = task.fields as readonly [readonly string[]];
  const missing = first.filter((name) => !fields.has(name)).join(', ');
  const others = SCORING_TASKS.filter((other) =>
    other.fields.some((names) => fields.has(...names)),
  );
  const hint =
    others.length > 0
      ? `; it looks like data of ${others.map(({ name }) => name).join(' or ')}`
      : '';
  throw new ArgumentError(
    `the task ${task.name} reads the fields ${first.join(', ')}, and this row lacks ${missing}` +
      `${hint}; its fields are ${Object.keys(row).join(', ')}`,
  );
}

async function openTaskRows(
  path: string,
  { columns }: ScoringTask,
  signal: AbortSignal | undefined,
): Promise<RowSource> {
  const array = kArray.test(path) ? await arrayOf(path) : null;
  if (array !== null) return arrayRows(array, `${path} row`);
  const isDelimited = /\.(csv|tsv)$/i.test(path);
  return openRows(path, {
    ...(columns !== undefined && isDelimited && { columns }),
    ...(signal !== undefined && { signal }),
  });
}

/** The objects of a file that is one JSON array; null: it begins otherwise, as JSON Lines do. */
async function arrayOf(path: string): Promise<readonly Row[] | null> {
  const text = await wholeText(path);
  if (!/^\uFEFF?\s*\[/.test(text)) return null;
  let value: unknown;
  try {
    value = JSON.parse(text.replace(/^\uFEFF/, ''));
  } catch (error) {
    throw new FormatError(`${path}: not valid JSON (${(error as Error).message})`, { path });
  }
  const isRow = (one: unknown): one is Row =>
    typeof one === 'object' && one !== null && !Array.isArray(one);
  if (Array.isArray(value) && value.every(isRow)) return value;
  throw new FormatError(`${path}: must be an array of objects`, {
    path,
    advice: 'make each element an object with the fields of the task',
  });
}

async function textItem(path: string, task: ScoringTask): Promise<unknown> {
  if (task.kind === 'rolling' && task.fromText !== undefined) {
    const text = await wholeText(path);
    if (text !== '') return task.fromText(text);
    throw new ArgumentError(`data: ${path} is empty; give a file with text`);
  }
  throw new ArgumentError(
    `data: ${path} is plain text, which the task ${task.name} cannot read; give .jsonl, .json, .csv, .tsv or .parquet`,
  );
}

async function wholeText(path: string): Promise<string> {
  return readText(path, { limit: kMaxWholeBytes });
}
