/**
 * The process that reads a Parquet file for `ParquetFile`, with hyparquet; one row group is in memory at a time. A damaged page may make
 * hyparquet count to billions or fill the memory, since it takes lengths from the pages as they are.
 */
import {
  type AsyncBuffer,
  type FileMetaData,
  parquetMetadataAsync,
  parquetReadObjects,
} from 'hyparquet';
import { BaloraError, type FormatError, fileError, UnsupportedError } from '../errors.ts';
import { fill, openRegular } from '../io/regular_file.ts';
import { answerRequests } from '../io/side_process.ts';
import type { ParquetFooter, ParquetRequest } from './parquet.ts';
import { kMaxRowBytes, kShrunk, type Row, rowTooLong } from './rows.ts';

/** Bytes of rows that are sent at a time. */
const kMessageBytes = 4 * 2 ** 20;

// hyparquet begins to read columns before it has looked at all of them. Where one is damaged, it forgets the others' promises; their failure
// must not end the process, since the request has an error already.
process.on('unhandledRejection', () => {});

await answerRequests<ParquetRequest>(async (setup) => {
  const reader = await Reader.open((setup as { path: string }).path);
  return async (request) =>
    request === 'footer' ? reader.footer() : reader.rows(request.start, request.end);
});

class Reader {
  /** The rows of the row group that was read last. */
  private group: { index: number; rows: Row[] } | null = null;

  private constructor(
    private readonly path: string,
    private readonly file: AsyncBuffer,
    private readonly metadata: FileMetaData,
  ) {}

  static async open(path: string): Promise<Reader> {
    const file = await bufferOf(path);
    const metadata = await withPath(path, () => parquetMetadataAsync(file));
    return new Reader(path, file, metadata);
  }

  /** @throws UnsupportedError for a compression other than snappy, FormatError for counts that cannot be */
  footer(): ParquetFooter {
    const groups = this.metadata.row_groups.map(({ num_rows, columns }) => {
      for (const { meta_data: column } of columns) {
        const codec = column?.codec ?? 'UNCOMPRESSED';
        if (codec !== 'UNCOMPRESSED' && codec !== 'SNAPPY') {
          throw new UnsupportedError(
            `${this.path}: Parquet compression ${codec} is not supported; write the file with SNAPPY or without compression`,
          );
        }
      }
      return { rows: Number(num_rows) };
    });
    const rows = groups.reduce((sum, group) => sum + group.rows, 0);
    const said = Number(this.metadata.num_rows);
    if (groups.every((group) => Number.isSafeInteger(group.rows) && group.rows >= 0)) {
      if (rows === said) return { groups };
    }
    throw this.damaged(`its footer counts ${said} rows, and its row groups ${rows}`);
  }

  async rows(start: number, end: number): Promise<Row[]> {
    let first = 0;
    for (const [index, { num_rows }] of this.metadata.row_groups.entries()) {
      const next = first + Number(num_rows);
      if (start < next) {
        const rows = await this.read(index, first, next);
        return this.fewRows(rows.slice(start - first, Math.min(end, next) - first), start);
      }
      first = next;
    }
    return [];
  }

  /** The first of some rows, as many as may be sent at a time, but at least one. @throws FormatError for a row above 16 MiB */
  private fewRows(rows: Row[], start: number): Row[] {
    let bytes = 0;
    for (const [i, row] of rows.entries()) {
      const size = sizeOf(row);
      bytes += size;
      if (i > 0 && bytes > kMessageBytes) return rows.slice(0, i);
      if (size > kMaxRowBytes) throw rowTooLong(this.path, ` row ${start + i}`);
    }
    return rows;
  }

  private async read(index: number, rowStart: number, rowEnd: number): Promise<Row[]> {
    if (this.group?.index === index) return this.group.rows;
    this.group = null;
    const { file, metadata } = this;
    const found = await withPath(this.path, () =>
      parquetReadObjects({ file, metadata, rowStart, rowEnd }),
    );
    if (found.length !== rowEnd - rowStart) {
      throw this.damaged(
        `row group ${index} has ${found.length} rows, and ${rowEnd - rowStart} by the footer`,
      );
    }
    const rows = found.map(plainRow);
    this.group = { index, rows };
    return rows;
  }

  private damaged(what: string): FormatError {
    return fileError(this.path, what);
  }
}

/** A file in the form that hyparquet reads. */
async function bufferOf(path: string): Promise<AsyncBuffer> {
  const handle = await openRegular(path);
  const { size } = await handle.stat();
  return {
    byteLength: size,
    async slice(start, end = size) {
      const buffer = new ArrayBuffer(Math.max(0, Math.min(end, size) - start));
      const filled = await fill(path, handle, { bytes: new Uint8Array(buffer), start });
      if (!filled) throw new Error(kShrunk);
      return buffer;
    },
  };
}

/** Characters and bytes in a value. */
function sizeOf(value: unknown): number {
  if (typeof value === 'string') return value.length;
  if (value instanceof Uint8Array) return value.length;
  if (value === null || typeof value !== 'object') return 0;
  return Object.values(value).reduce((sum: number, part) => sum + sizeOf(part), 0);
}

/** A row whose 64-bit integers are numbers where they fit, since labels are often stored so. */
function plainRow(row: Readonly<Record<string, unknown>>): Row {
  return Object.fromEntries(Object.entries(row).map(([name, value]) => [name, plain(value)]));
}

function plain(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(plain);
  // A structure, such as a message.
  if (
    value !== null &&
    typeof value === 'object' &&
    Object.getPrototypeOf(value) === Object.prototype
  ) {
    return plainRow(value as Row);
  }
  if (typeof value !== 'bigint') return value;
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : String(value);
}

async function withPath<T>(path: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (error instanceof BaloraError) throw error;
    // V8 may refuse an array before the memory is used up.
    if (error instanceof RangeError && /array length/i.test(error.message)) {
      throw fileError(
        path,
        'reading it needed too long an array: a page is damaged or too large',
        'write it again, with smaller row groups, or as JSON Lines',
      );
    }
    throw fileError(path, `${(error as Error).message}`);
  }
}
