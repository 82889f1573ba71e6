/**
 * Sources of data rows: anything with a length that gives a row by its index. `JsonlFile` reads a file that may be larger than
 * memory; `arrayRows` wraps rows that are in memory already.
 */
import type { FileHandle } from 'node:fs/promises';
import { ArgumentError, BaloraError, FormatError, UnsupportedError } from '../errors.ts';
import { formatBytes } from '../io/format_bytes.ts';
import { isMissing, openRegular } from '../io/regular_file.ts';
import { shown } from '../shown.ts';

/** One row of data: its fields by name. */
export type Row = Readonly<Record<string, unknown>>;

/** Rows of data by index. */
export interface RowSource {
  readonly length: number;
  /** Reads a row. @throws FormatError naming file, line and column if the row is damaged */
  row(index: number): Promise<Row>;
  /** The location of a row, for messages: `train.jsonl:12`. */
  where(index: number): Promise<string>;
  /** Closes the file, if there is one. */
  close(): Promise<void>;
  /** The files that the rows come from, in their order, where there are several. */
  readonly files?: readonly RowFile[];
  /** The settings by which the rows were made from those of the files, which become a part of a run's identity. */
  readonly recipe?: object;
}

/** The rows of one of several files. */
export interface RowFile {
  /** Index of its first row among the rows of all files. */
  readonly start: number;
  readonly length: number;
  /** Weight of the file in an epoch; null for files without weights, each row of which comes once in an epoch. */
  readonly weight: number | null;
}

/**
 * Largest size of a row of a file in bytes; in a TSV, CSV or Parquet file characters are counted. It is far above what a model reads,
 * and a row of this size is read and tokenized in seconds.
 */
export const kMaxRowBytes = 16 * 2 ** 20;

/** Advice for text in another encoding. */
export const kEncodingAdvice = 'save the file as UTF-8';

/** Message and advice for a file that has become shorter while it is read. */
export const kShrunk = 'the file has shrunk while in use';
export const kShrunkAdvice = 'start again with a file that nothing writes to';

/** Complaint about a value of JSON that is no row; null for one that is. */
export function notARow(value: unknown): string | null {
  if (value !== null && typeof value === 'object' && !Array.isArray(value)) return null;
  const kind = value === null ? 'null' : Array.isArray(value) ? 'an array' : `a ${typeof value}`;
  return `a row must be a JSON object, got ${kind}`;
}

/** The error for a file without rows. */
export function noRows(path: string): ArgumentError {
  return new ArgumentError(`data: ${path} has no rows; give a file with at least one`);
}

/** The error for a row that a file does not have. */
export function noSuchRow({ path, length }: { path: string; length: number }, index: number) {
  return new ArgumentError(
    `data: ${path} has ${length} rows, no row ${index}; ask for one from 0 to ${length - 1}`,
  );
}

/** Opens a data file. @throws as openRegular does, with a message of its own for a file that does not exist */
export function openData(path: string): Promise<FileHandle> {
  return openRegular(path).catch((error: unknown) => {
    throw cannotOpen(path, error);
  });
}

/** The error for a file that cannot be opened: one of its own where it does not exist. */
export function cannotOpen(path: string, error: unknown): unknown {
  if (!isMissing(error)) return error;
  return new FormatError(`data: cannot open ${path}: no such file`, {
    path,
    advice: 'check the path',
  });
}

/**
 * The error for a row that is longer than {@link kMaxRowBytes}.
 * @param place of the row, behind the path: `:12`, ` row 11`
 */
export function rowTooLong(path: string, place: string, offset?: number): FormatError {
  const limit = formatBytes(kMaxRowBytes);
  return new FormatError(`${path}${place}: the row is longer than ${limit}`, {
    path,
    offset,
    advice: 'divide its text over several rows, and check that rows end in line breaks',
  });
}

/**
 * Rows in memory.
 * @throws ArgumentError for a list that is empty, or has anything but objects
 */
export function arrayRows(rows: readonly Row[], name = 'row'): RowSource {
  if (!Array.isArray(rows)) {
    throw new ArgumentError(`data: the rows must be a list of objects, got ${shown(rows)}`);
  }
  if (rows.length === 0)
    throw new ArgumentError('data: the list of rows is empty; give at least one');
  const odd = rows.findIndex((row) => typeof row !== 'object' || row === null);
  if (odd >= 0) {
    throw new ArgumentError(`data: ${name} ${odd} must be an object, got ${shown(rows[odd])}`);
  }
  return {
    length: rows.length,
    row: async (index) => rows[index] as Row,
    where: async (index) => `${name} ${index}`,
    close: async () => {},
  };
}

/**
 * Runs `work` on the contents of a row, and adds the row's location to the message of its error.
 * @throws UnsupportedError where the work does, ArgumentError for other errors about the contents; errors of a damaged file have
 *   their location already and are not changed
 */
export async function withRowLocation<T>(
  rows: RowSource,
  index: number,
  work: () => T | Promise<T>,
): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof BaloraError) || (error instanceof FormatError && error.path)) {
      throw error;
    }
    const message = `${await rows.where(index)}: ${error.message}`;
    throw error instanceof UnsupportedError
      ? new UnsupportedError(message)
      : new ArgumentError(message);
  }
}
