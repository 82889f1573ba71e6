/** Items of a task from a file of its data. */
import { openRows } from '../data/open_rows.ts';
import { arrayRows, type Row, type RowSource, withRowLocation } from '../data/rows.ts';
import { ArgumentError } from '../errors.ts';
import { readText } from '../io/regular_file.ts';
import {
  type CallTable,
  checkArgument,
  checkCall,
  kCall,
  oneOf,
  wholeNumber,
} from '../options/call.ts';
import { Fields } from './tasks/fields.ts';
import { SCORING_TASKS } from './tasks/registry.ts';
import type { DataPart, ScoringTask } from './tasks/task.ts';

/** The items of a task. */
export type ItemOf<T extends ScoringTask> = ReturnType<T['read']>;

/** Options of {@link readItems}. */
export interface ReadItemsOptions {
  /** Number of items to read at most, from the first on. Default: all. */
  readonly limit?: number | undefined;
  /** The part of the data to read, of a file that has both. Default: the items. */
  readonly part?: DataPart | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** The kinds of the options. */
const kTable: CallTable<ReadItemsOptions> = {
  limit: wholeNumber({ least: 1 }),
  part: oneOf(['items', 'examples']),
  signal: kCall.signal,
};

const kText = /\.(txt|md|raw|tokens)$/i;
const kJson = /\.json$/i;

/** The largest file that is read as a whole: a JSON document or plain text. */
const kWhole = { limit: 256 * 2 ** 20 };

/**
 * Reads the items of a task: a row each of JSON Lines, a JSON array, CSV, TSV or Parquet; for some tasks also plain text, or a file
 * that is one JSON document.
 * @throws ArgumentError naming file, line and field for a row that the task cannot read; where all its fields are those of another
 *   task, the message says so. Errors of the file itself are those of its reader
 */
export async function readItems<T extends ScoringTask>(
  path: string,
  task: T,
  options: ReadItemsOptions = {},
): Promise<ItemOf<T>[]> {
  checkArgument('readItems: the file', kCall.path, path);
  checkCall('readItems', options, kTable);
  const { limit = Number.POSITIVE_INFINITY, part = 'items', signal } = options;
  const rows = await openTaskRows(path, task, signal);
  try {
    const items: ItemOf<T>[] = [];
    for (let i = 0; i < rows.length && items.length < limit; i++) {
      signal?.throwIfAborted();
      const row = await rows.row(i);
      await withRowLocation(rows, i, () => {
        const fields = checkedFields(row, task);
        if (task.belongsTo?.(fields, part) === false) return;
        items.push(task.read(fields) as ItemOf<T>);
      });
    }
    if (items.length > 0) return items;
    throw new ArgumentError(`data: ${path} has no ${part} of the task ${task.name}`);
  } finally {
    await rows.close();
  }
}

/** The fields of a row. @throws ArgumentError where they are not those that the task reads */
function checkedFields(row: Row, task: ScoringTask): Fields {
  const fields = new Fields(row);
  if (task.fields.some((names) => fields.has(...names))) return fields;
  const [first] = task.fields as readonly [readonly string[]];
  const missing = first.filter((name) => !fields.has(name)).join(', ');
  const others = SCORING_TASKS.filter(
    (other) =>
      other.fields.some((names) => fields.has(...names)) || other.rowsOfJson?.(row)?.length,
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
  task: ScoringTask,
  signal: AbortSignal | undefined,
): Promise<RowSource> {
  const { columns } = task;
  const whole = kText.test(path)
    ? await textRows(path, task)
    : kJson.test(path) && task.rowsOfJson !== undefined
      ? await documentRows(path, task.rowsOfJson)
      : null;
  if (whole !== null) return arrayRows(whole, `${path} row`);
  const isDelimited = /\.(csv|tsv)$/i.test(path);
  return openRows(path, { columns: isDelimited ? columns : undefined, signal });
}

/** The rows that a task makes of a JSON document; null for an array or JSON Lines, which are rows already. */
async function documentRows(
  path: string,
  rowsOfJson: NonNullable<ScoringTask['rowsOfJson']>,
): Promise<readonly Row[] | null> {
  const text = (await readText(path, kWhole)).replace(/^\uFEFF/, '');
  if (/^\s*\[/.test(text)) return null;
  try {
    return rowsOfJson(JSON.parse(text));
  } catch (error) {
    if (error instanceof SyntaxError) return null; // of JSON Lines the reader of rows tells what is wrong
    throw error;
  }
}

/** The rows of a file that is plain text. */
async function textRows(path: string, task: ScoringTask): Promise<readonly Row[]> {
  if (task.rowsOfText === undefined) {
    throw new ArgumentError(
      `data: ${path} is plain text, which the task ${task.name} cannot read; give .jsonl, .json, .csv, .tsv or .parquet`,
    );
  }
  const text = await readText(path, kWhole);
  if (text !== '') return task.rowsOfText(text);
  throw new ArgumentError(`data: ${path} is empty; give a file with text`);
}
