/** Opening of data files as rows: a reader by the extension of the name and the first character, and several files as one source. */
import { ArgumentError } from '../errors.ts';
import {
  type CallKind,
  checkArgument,
  checkCall,
  finiteNumber,
  kCall,
  listOf,
} from '../options/call.ts';
import { DelimitedFile } from './delimited.ts';
import { JsonArrayFile } from './json_array.ts';
import { JsonlFile, type JsonlOptions } from './jsonl.ts';
import { checkWeights, closeAll, mixRows } from './mixed_rows.ts';
import { ParquetFile } from './parquet.ts';
import type { RowSource } from './rows.ts';

/** Options for opening data files. */
export interface OpenRowsOptions extends JsonlOptions {
  /** Names of the columns of TSV or CSV files without header. */
  columns?: readonly string[];
  /**
   * A weight > 0 for each of several files: the share of an epoch's examples that come from it, relative to the other weights. Default:
   * none; every row of every file comes once in an epoch.
   */
  dataWeights?: readonly number[];
}

/** A path, or a list of them that is not empty. */
const kPaths: CallKind = {
  schema: kCall.path.schema.or(listOf(kCall.path, '').schema.refine((list) => isFilled(list))),
  wanted: 'a path or a list of paths',
};

const isFilled = (list: unknown): boolean => (list as readonly unknown[]).length > 0;

/**
 * Opens .tsv, .csv, .parquet, or JSON (any other name): one object a line, or one array of objects. Of several files, which may be of
 * different kinds, the rows come one file after the other.
 * @throws ArgumentError, FormatError, UnsupportedError as the reader of that kind does
 */
export async function openRows(
  paths: string | readonly string[],
  options: OpenRowsOptions = {},
): Promise<RowSource> {
  checkArgument('data: the file', kPaths, paths);
  checkCall('data', options, {
    columns: kCall.texts,
    signal: kCall.signal,
    dataWeights: listOf(finiteNumber({ least: 0, above: true }), 'a list of numbers > 0'),
  });
  const { dataWeights, ...rest } = options;
  const files = typeof paths === 'string' ? [paths] : paths;
  checkWeights(files.length, dataWeights);
  const opened: RowSource[] = [];
  try {
    for (const path of files) opened.push(await openFile(path, rest));
    return mixRows(opened, dataWeights);
  } catch (error) {
    await closeAll(opened).catch(() => {}); // the error that was first is the one to show
    throw error;
  }
}

async function openFile(
  path: string,
  { columns, ...rest }: Omit<OpenRowsOptions, 'dataWeights'>,
): Promise<RowSource> {
  if (/\.(tsv|csv)$/i.test(path)) {
    return DelimitedFile.open(path, { ...rest, columns });
  }
  if (columns !== undefined) {
    throw new ArgumentError(
      `data: columns are for .tsv and .csv files, and ${path} names its own fields; leave them out`,
    );
  }
  if (/\.parquet$/i.test(path)) return ParquetFile.open(path, rest);
  return (await JsonArrayFile.isArray(path))
    ? JsonArrayFile.open(path, rest.signal)
    : JsonlFile.open(path, rest);
}
