/** Opening of a data file as rows, by the extension of its name. */
import { ArgumentError } from '../errors.ts';
import { checkArgument, checkCall, kCall } from '../options/call.ts';
import { DelimitedFile } from './delimited.ts';
import { JsonlFile, type JsonlOptions } from './jsonl.ts';
import { ParquetFile } from './parquet.ts';
import type { RowSource } from './rows.ts';

/** Options for opening a data file. */
export interface OpenRowsOptions extends JsonlOptions {
  /** Names of the columns of a TSV or CSV file without header. */
  columns?: readonly string[];
}

/**
 * Opens .tsv, .csv, .parquet, or JSON Lines (any other name).
 * @throws ArgumentError, FormatError, UnsupportedError as the reader of that kind does
 */
export async function openRows(path: string, options: OpenRowsOptions = {}): Promise<RowSource> {
  checkArgument('data: the file', kCall.path, path);
  checkCall('data', options, { columns: kCall.texts, signal: kCall.signal });
  const { columns, ...rest } = options;
  if (/\.(tsv|csv)$/i.test(path)) {
    return DelimitedFile.open(path, { ...rest, ...(columns !== undefined && { columns }) });
  }
  if (columns !== undefined) {
    throw new ArgumentError(
      `data: columns are for .tsv and .csv files, and ${path} names its own fields; leave them out`,
    );
  }
  return /\.parquet$/i.test(path) ? ParquetFile.open(path, rest) : JsonlFile.open(path, rest);
}
