/**
 * Parquet files as rows. They are decoded in another process (parquet_process.ts), since decoding a row group takes seconds, and a
 * damaged one may take forever: it is stopped after a time that its size allows for.
 */
import { ArgumentError, fileError } from '../errors.ts';
import { SideProcess } from '../io/side_process.ts';
import { type CallTable, checkCall, kCall } from '../options/call.ts';
import { noRows, noSuchRow, openData, type Row, type RowSource } from './rows.ts';

/** The footer, or the rows from `start` to `end`; no more than those in one row group are returned. */
export type ParquetRequest = 'footer' | { readonly start: number; readonly end: number };

/** Rows of each row group, as the footer says. */
export interface ParquetFooter {
  readonly groups: readonly { readonly rows: number }[];
}

/** Options of {@link ParquetFile.open}. */
export interface ParquetOptions {
  signal?: AbortSignal;
}

/** The kinds of the options. */
const kTable: CallTable<ParquetOptions> = { signal: kCall.signal };

/** Largest number of rows that are sent at a time: those after the one that was asked for, when rows are read in order. */
const kRowsAhead = 64;
/** Time for decoding a row group: seconds, and seconds for a MiB of the file. It takes some 20 ms for a MiB. */
const kSeconds = 20;
const kSecondsPerMiB = 0.5;
/** Heap for a row group, and MiB for a MiB of the file. */
const kHeapMiB = 1024;
const kHeapPerMiB = 16;

/** A Parquet file as rows. */
export class ParquetFile implements RowSource {
  #window: { start: number; rows: Promise<Row[]> } | null = null;
  /** Index of the row after the one that was read last. */
  #next = 0;
  /** How often the file has been closed. */
  #closes = 0;

  private constructor(
    readonly path: string,
    private readonly reader: SideProcess<ParquetRequest, unknown>,
    /** First row of each row group, and the number of rows. */
    private readonly starts: readonly number[],
    /** Size of the file in MiB. */
    private readonly mebibytes: number,
    private readonly signal: AbortSignal | undefined,
  ) {}

  /**
   * Opens a file and reads its footer.
   * @throws ArgumentError if there is no such file or it has no rows, FormatError if it is no Parquet file, UnsupportedError for a
   *   compression other than snappy
   */
  static async open(path: string, options: ParquetOptions = {}): Promise<ParquetFile> {
    checkCall('data', options, kTable);
    const { signal } = options;
    const mebibytes = (await sizeOf(path)) / 2 ** 20;
    const reader = new SideProcess<ParquetRequest, unknown>({
      module: 'data/parquet_process.js',
      setup: { path },
      heapMiB: Math.ceil(kHeapMiB + kHeapPerMiB * mebibytes),
    });
    try {
      const ask = askOptions(path, mebibytes, signal);
      const { groups } = (await reader.ask('footer', ask)) as ParquetFooter;
      const starts = [0];
      for (const { rows } of groups) starts.push((starts.at(-1) as number) + rows);
      if (starts.at(-1) === 0) throw noRows(path);
      return new ParquetFile(path, reader, starts, mebibytes, signal);
    } catch (error) {
      await reader.end();
      throw error;
    }
  }

  get length(): number {
    return this.starts.at(-1) as number;
  }

  async row(index: number): Promise<Row> {
    if (!(index >= 0 && index < this.length)) throw noSuchRow(this, index);
    const inOrder = index === this.#next;
    this.#next = index + 1;
    const closes = this.#closes;
    let window = this.#window; // one object that is replaced as a whole, because reads may overlap
    let rows = (await window?.rows.catch(() => null)) ?? [];
    if (closes !== this.#closes) throw closed(this.path);
    if (window === null || index < window.start || index >= window.start + rows.length) {
      window = { start: index, rows: this.#read(index, inOrder ? index + kRowsAhead : index + 1) };
      this.#window = window;
      rows = await window.rows;
    }
    return rows[index - window.start] as Row;
  }

  async where(index: number): Promise<string> {
    return `${this.path} row ${index}`;
  }

  /** Ends the process that reads the file. A row that is being read is an error; the next one that is asked for starts it again. */
  async close(): Promise<void> {
    this.#window = null;
    this.#closes++;
    await this.reader.end();
  }

  async #read(start: number, end: number): Promise<Row[]> {
    const ask = askOptions(this.path, this.mebibytes, this.signal);
    return (await this.reader.ask({ start, end }, ask)) as Row[];
  }
}

async function sizeOf(path: string): Promise<number> {
  const file = await openData(path);
  try {
    return (await file.stat()).size;
  } finally {
    await file.close();
  }
}

function askOptions(path: string, mebibytes: number, signal: AbortSignal | undefined) {
  const seconds = kSeconds + kSecondsPerMiB * mebibytes;
  return {
    signal,
    limitMs: 1000 * seconds,
    onEnd: (why: 'time' | 'memory' | 'closed') => {
      if (why === 'closed') return closed(path);
      const what = why === 'time' ? `took more than ${Math.ceil(seconds)} s` : 'ran out of memory';
      return fileError(
        path,
        `reading it ${what}: a page is damaged or too large`,
        'write it again, with smaller row groups, or as JSON Lines',
      );
    },
  };
}

function closed(path: string): ArgumentError {
  return new ArgumentError(
    `data: ${path} was closed while a row of it was being read; close it when its rows are there`,
  );
}
