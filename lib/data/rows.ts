/**
 * Where rows of data come from: anything with a length that gives a row by its index. `JsonlFile` reads a file that may be
 * larger than memory; `arrayRows` wraps rows that are there already.
 */
import { ArgumentError, BaloraError, FormatError, UnsupportedError } from '../errors.ts';

/** One row: fields by name. */
export type Row = Readonly<Record<string, unknown>>;

/** Rows of data by index. */
export interface RowSource {
  readonly length: number;
  /** @throws FormatError naming file, line and column if the row is damaged */
  row(index: number): Promise<Row>;
  /** Where the row stands, for messages: `train.jsonl:12`. */
  where(index: number): Promise<string>;
  /** Lets go of the file, if there is one. */
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
 * Runs what reads the contents of a row, and puts the row's place in front of its error.
 * @throws UnsupportedError where the work does, ArgumentError for other errors about the contents; those of a file that is
 *   damaged name their place already and pass as they are
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
