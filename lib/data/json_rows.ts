/**
 * Files of JSON that may be larger than memory: one pass over the file in chunks finds where rows begin, then rows are read and parsed
 * by index. A damaged row is an error that names its place.
 */
import type { FileHandle } from 'node:fs/promises';
import { FormatError } from '../errors.ts';
import { failedRead, fill } from '../io/regular_file.ts';
import { jsonErrorOffset } from './json_position.ts';
import {
  kEncodingAdvice,
  kShrunk,
  kShrunkAdvice,
  noRows,
  noSuchRow,
  notARow,
  openData,
  type Row,
  type RowSource,
} from './rows.ts';

const kChunkBytes = 1 << 20;
const kNewline = 10;

/** Growing list of byte offsets (exact up to 2^53). */
export class Offsets {
  private values = new Float64Array(1024);
  length = 0;

  push(value: number): void {
    if (this.length === this.values.length) {
      const grown = new Float64Array(2 * this.values.length);
      grown.set(this.values);
      this.values = grown;
    }
    this.values[this.length++] = value;
  }

  finish(): Float64Array {
    return this.values.slice(0, this.length);
  }
}

/** Number of bytes of a UTF-8 byte-order mark at the start of a file. @param start the first bytes of the file, 3 at least */
export function markBytes(start: Uint8Array): number {
  return start[0] === 0xef && start[1] === 0xbb && start[2] === 0xbf ? 3 : 0;
}

/** Reads a file in chunks, each of which is valid until the next one is asked for. */
export async function* readChunks(path: string, file: FileHandle): AsyncGenerator<Uint8Array> {
  const buffer = new Uint8Array(kChunkBytes);
  for (let position = 0; ; ) {
    const { bytesRead } = await file
      .read(buffer, 0, buffer.length, position)
      .catch(failedRead(path));
    if (bytesRead === 0) return;
    yield buffer.subarray(0, bytesRead);
    position += bytesRead;
  }
}

/** A file whose rows have been found: the first byte of each, and the file's size in bytes. */
interface IndexedFile {
  readonly path: string;
  readonly file: FileHandle;
  readonly size: number;
  readonly starts: Float64Array;
}

/**
 * Opens a data file and passes it to a finder of rows in chunks. The file is closed where that throws.
 * @throws ArgumentError if there is no such file or it has no rows, and as openRegular
 */
export async function openIndexed(
  path: string,
  signal: AbortSignal | undefined,
  finder: { readonly starts: Offsets; feed(chunk: Uint8Array): void; finish?(): void },
): Promise<IndexedFile> {
  const file = await openData(path);
  try {
    let size = 0;
    for await (const chunk of readChunks(path, file)) {
      signal?.throwIfAborted();
      finder.feed(chunk);
      size += chunk.length;
    }
    finder.finish?.();
    if (finder.starts.length === 0) throw noRows(path);
    return { path, file, size, starts: finder.starts.finish() };
  } catch (error) {
    await file.close();
    throw error;
  }
}

/**
 * Rows of JSON in a file of any size, each of which is read and parsed when it is asked for. Rows that are read in order come from a
 * window that is filled a chunk at a time.
 */
export abstract class JsonRows implements RowSource {
  readonly path: string;
  /** Advice for a row that is damaged. */
  protected abstract readonly advice: string;
  private window = { start: 0, bytes: new Uint8Array() as Uint8Array };
  /** Index of the row after the one that was read last. */
  private next = 0;

  protected constructor(protected readonly indexed: IndexedFile) {
    this.path = indexed.path;
  }

  get length(): number {
    return this.indexed.starts.length;
  }

  async row(index: number): Promise<Row> {
    const start = this.indexed.starts[index];
    if (start === undefined) throw noSuchRow(this, index);
    const bytes = await this.read(index, start, this.end(index));
    if (bytes === null) throw await this.damaged(index, '', kShrunk, kShrunkAdvice);
    const { text, good } = decodeUtf8(bytes);
    if (text === null) throw await this.damaged(index, good, 'not valid UTF-8', kEncodingAdvice);
    let value: unknown;
    let wrong: string | null;
    let before = '';
    try {
      value = JSON.parse(text);
      wrong = notARow(value);
    } catch (error) {
      wrong = `not valid JSON (${(error as Error).message})`;
      before = text.slice(0, jsonErrorOffset(text) ?? 0);
    }
    if (wrong === null) return value as Row;
    const error = await this.damagedFile?.(index, text, value);
    throw error ?? (await this.damaged(index, before, wrong));
  }

  async where(index: number): Promise<string> {
    return this.place(await this.line(index), index);
  }

  /** Closes the file; rows cannot be read afterwards. */
  async close(): Promise<void> {
    await this.indexed.file.close();
  }

  /** The byte at which a row ends, or before which it does. */
  protected abstract end(index: number): number;

  /** The place of a row for messages, or that behind some text of it, from the number of its first line. */
  protected abstract place(line: number, index: number, before?: string): string;

  /** The error for a row, valid JSON (`value`) or not, that shows the whole file to be of another form. */
  protected damagedFile?(index: number, text: string, value: unknown): Promise<FormatError | null>;

  /** The error for a damaged row. @param before the text of the row in front of the damage */
  protected async damaged(
    index: number,
    before: string,
    what: string,
    advice = this.advice,
  ): Promise<FormatError> {
    const { path } = this;
    const offset = this.indexed.starts[index] as number;
    const place = this.place(await this.line(index), index, before);
    return new FormatError(`${place}: ${what}`, { path, advice, offset });
  }

  /** The number, from 1, of a row's first line: blank lines count, so the file is read up to there. */
  private async line(index: number): Promise<number> {
    let left = this.indexed.starts[index] as number;
    let line = 1;
    for await (const chunk of readChunks(this.path, this.indexed.file)) {
      const part = chunk.subarray(0, Math.min(left, chunk.length));
      for (let at = part.indexOf(kNewline); at >= 0; at = part.indexOf(kNewline, at + 1)) line++;
      left -= part.length;
      if (left === 0) break;
    }
    return line;
  }

  /** Bytes of the file for a row; null where the file has become shorter. */
  private async read(index: number, start: number, end: number): Promise<Uint8Array | null> {
    const inOrder = index === this.next;
    this.next = index + 1;
    let { window } = this; // one object that is replaced as a whole, because reads may overlap
    if (start < window.start || end > window.start + window.bytes.length) {
      const ahead = Math.min(Math.max(end - start, kChunkBytes), this.indexed.size - start);
      const bytes = new Uint8Array(inOrder ? ahead : end - start);
      if (!(await fill(this.path, this.indexed.file, { bytes, start }))) return null;
      window = { start, bytes };
      this.window = window;
    }
    return window.bytes.subarray(start - window.start, end - window.start);
  }
}

/** Decodes UTF-8. @returns the text; null where bytes are no UTF-8, with the good text in front of them */
export function decodeUtf8(bytes: Uint8Array): {
  readonly text: string | null;
  readonly good: string;
} {
  try {
    const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
    return { text: decoder.decode(bytes), good: '' };
  } catch {
    const at = invalidUtf8Offset(bytes);
    return { text: null, good: new TextDecoder().decode(bytes.subarray(0, at)) };
  }
}

/** Number of bytes before the first that cannot belong to UTF-8: the longest prefix that decodes. */
function invalidUtf8Offset(bytes: Uint8Array): number {
  let good = 0;
  let bad = bytes.length + 1;
  while (bad - good > 1) {
    const middle = (good + bad) >> 1;
    try {
      // stream: true lets a character be cut by the end of the prefix.
      new TextDecoder('utf-8', { fatal: true }).decode(bytes.subarray(0, middle), { stream: true });
      good = middle;
    } catch {
      bad = middle;
    }
  }
  // All of it decodes but for a character that the end cuts: step back to its first byte.
  if (good === bytes.length)
    do good--;
    while (good > 0 && ((bytes[good] as number) & 0xc0) === 0x80);
  return good;
}
