/** Rows of several files as one source: one file after the other, with weights that say how much of an epoch each one makes up. */
import { ArgumentError } from '../errors.ts';
import type { Row, RowFile, RowSource } from './rows.ts';

/** The index, among the files of a source, of the file that a row comes from; 0 where the source has one file. */
export function fileOf({ files }: Pick<RowSource, 'files'>, index: number): number {
  if (files === undefined) return 0;
  let [low, high] = [0, files.length - 1];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if ((files[middle] as RowFile).start <= index) low = middle;
    else high = middle - 1;
  }
  return low;
}

/** The choice for the file of a row. @param choices one for each file */
export function choiceOf<T>(choices: readonly T[], rows: RowSource, index: number): T {
  return choices[fileOf(rows, index)] as T;
}

/**
 * Several sources of rows as one, one after the other.
 * @param weights a weight for each source: the share of an epoch's examples that come from it, relative to the other weights. Default:
 *   none; every row comes once in an epoch
 * @throws ArgumentError for another number of weights than sources, and weights that are not above 0
 */
export function mixRows(sources: readonly RowSource[], weights?: readonly number[]): RowSource {
  if (sources.length === 0) throw new ArgumentError('data: there is no file; give at least one');
  checkWeights(sources.length, weights);
  if (sources.length === 1) return sources[0] as RowSource;
  let length = 0;
  const files = sources.map((source, i): RowFile => {
    const file = { start: length, length: source.length, weight: weights?.[i] ?? null };
    length += source.length;
    return file;
  });
  const at = (index: number): [source: RowSource, index: number] => {
    const file = index >= 0 && index < length ? fileOf({ files }, index) : -1;
    if (file < 0) {
      throw new ArgumentError(
        `data: the files have ${length} rows, no row ${index}; ask for one from 0 to ${length - 1}`,
      );
    }
    return [sources[file] as RowSource, index - (files[file] as RowFile).start];
  };
  return {
    length,
    files,
    row: async (index): Promise<Row> => {
      const [source, own] = at(index);
      return source.row(own);
    },
    where: async (index) => {
      const [source, own] = at(index);
      return source.where(own);
    },
    close: () => closeAll(sources),
  };
}

/** Closes sources of rows, the others also where one cannot be closed. @throws the first failure */
export async function closeAll(sources: readonly RowSource[]): Promise<void> {
  const ends = await Promise.allSettled(sources.map((source) => source.close()));
  for (const end of ends) if (end.status === 'rejected') throw end.reason;
}

/** Refuses weights that do not fit the files. @throws ArgumentError */
export function checkWeights(files: number, weights: readonly number[] | undefined): void {
  if (weights === undefined) return;
  if (weights.length !== files) {
    throw new ArgumentError(
      `dataWeights must be one number for each file: got ${weights.length} for ${files}`,
    );
  }
  const odd = weights.find((weight) => !(Number.isFinite(weight) && weight > 0));
  if (odd === undefined) return;
  throw new ArgumentError(
    `dataWeights must be numbers > 0, got ${odd}; leave out a file that is not to be used`,
  );
}
