/**
 * Sources of data rows: anything with a length that gives a row by its index. `JsonlFile` reads a file that may be larger than
 * memory; `arrayRows` wraps rows that are in memory already.
 */
import { ArgumentError, BaloraError, FormatError, UnsupportedError } from '../errors.ts';

/** One row of data: its fields by name. */
export type Row = Readonly<Record<string, unknown>>;

/** Rows of data by index. */
export interface RowSource {
  readonly length: number;
  /** Reads a row. @throws FormatError naming file, line and column if the row is damaged */
  row(index: number): Promise<Row>;
  /** Place of a row, for messages: `train.jsonl:12`. */
  where(index: number): Promise<string>;
  /** Closes the file, if there is one. */
  close(): Promise<void>;
}

/** Rows in memory. */
export function arrayRows(rows: readonly Row[], name = 'row'): RowSource {
  if (rows.length === 0) throw new ArgumentError(`data: ${name} has no rows`);
  return {
    length: rows.length,
    row: async (index) => rows[index] as Row,
    where: async (index) => `${name} ${index}`,
    close: async () => {},
  };
}

/**
 * Runs `work` on the contents of a row, and puts the row's place in front of its error.
 * @throws UnsupportedError where the work does, ArgumentError for other errors about the contents; the errors of a damaged file
 *   name their place already and pass unchanged
 */
export async function located<T>(rows: RowSource, index: number, work: () => T): Promise<T> {
  try {
    return work();
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
