/** Parquet files as rows, through hyparquet; one row group is in memory at a time. */
import { stat } from 'node:fs/promises';
import { FormatError, UnsupportedError } from '../errors.ts';
import { cannotOpen, noRows, noSuchRow, type Row, type RowSource } from './rows.ts';

type Hyparquet = typeof import('hyparquet');
type File = Awaited<ReturnType<Hyparquet['asyncBufferFromFile']>>;
type Metadata = Awaited<ReturnType<Hyparquet['parquetMetadataAsync']>>;

interface Group {
  readonly start: number;
  readonly end: number;
  readonly rows: Promise<Row[]>;
}

/** A Parquet file as rows. */
export class ParquetFile implements RowSource {
  #group: Group | null = null;

  private constructor(
    readonly path: string,
    private readonly hyparquet: Hyparquet,
    private readonly file: File,
    private readonly metadata: Metadata,
    /** First row of each row group, and the number of rows. */
    private readonly starts: readonly number[],
  ) {}

  /**
   * Opens a file and reads its footer.
   * @throws ArgumentError if the file cannot be read or has no rows, FormatError if it is no Parquet file, UnsupportedError for a
   *   compression other than snappy
   */
  static async open(path: string): Promise<ParquetFile> {
    await stat(path).catch((error: NodeJS.ErrnoException) => {
      throw cannotOpen(path, error);
    });
    // The package is loaded when needed, since most runs read no Parquet.
    const hyparquet = await import('hyparquet');
    const { file, metadata } = await withPath(path, async () => {
      const opened = await hyparquet.asyncBufferFromFile(path);
      return { file: opened, metadata: await hyparquet.parquetMetadataAsync(opened) };
    });
    for (const { columns } of metadata.row_groups) {
      for (const { meta_data: column } of columns) {
        const codec = column?.codec ?? 'UNCOMPRESSED';
        if (codec === 'UNCOMPRESSED' || codec === 'SNAPPY') continue;
        throw new UnsupportedError(
          `${path}: Parquet compression ${codec} is not supported; write the file with SNAPPY or without compression`,
        );
      }
    }
    const starts = [0];
    for (const { num_rows } of metadata.row_groups) {
      starts.push((starts.at(-1) as number) + Number(num_rows));
    }
    if (starts.at(-1) === 0) throw noRows(path);
    return new ParquetFile(path, hyparquet, file, metadata, starts);
  }

  get length(): number {
    return this.starts.at(-1) as number;
  }

  async row(index: number): Promise<Row> {
    if (!(index >= 0 && index < this.length)) {
      throw noSuchRow(this, index);
    }
    let group = this.#group;
    if (group === null || index < group.start || index >= group.end) {
      group = this.#read(index);
      this.#group = group;
    }
    const rows = await group.rows;
    return rows[index - group.start] as Row;
  }

  async where(index: number): Promise<string> {
    return `${this.path} row ${index}`;
  }

  async close(): Promise<void> {
    this.#group = null;
  }

  #read(index: number): Group {
    const next = this.starts.findIndex((start) => start > index);
    const [start, end] = [this.starts[next - 1] as number, this.starts[next] as number];
    const { file, metadata } = this;
    const rows = withPath(this.path, async () => {
      const range = { file, metadata, rowStart: start, rowEnd: end };
      return (await this.hyparquet.parquetReadObjects(range)).map(plainRow);
    });
    return { start, end, rows };
  }
}

/** A row whose 64-bit integers are numbers where they fit, since labels are often stored so. */
function plainRow(row: Readonly<Record<string, unknown>>): Row {
  return Object.fromEntries(Object.entries(row).map(([name, value]) => [name, plain(value)]));
}

function plain(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(plain);
  if (typeof value !== 'bigint') return value;
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : String(value);
}

async function withPath<T>(path: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    throw new FormatError(`${path}: ${(error as Error).message}`, { path });
  }
}
