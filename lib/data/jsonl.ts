/**
 * JSON Lines files that may be larger than memory: one pass records where each row begins (8 bytes per row), then rows are read by
 * index. Blank lines and a byte-order mark are skipped. A damaged line is an error naming file, line and column.
 */
import type { FileHandle } from 'node:fs/promises';
import { FormatError } from '../errors.ts';
import { openRegular, readError } from '../io/regular_file.ts';
import { type CallTable, checkCall, kCall } from '../options/call.ts';
import { jsonErrorOffset } from './json_position.ts';
import {
  cannotOpen,
  kEncodingAdvice,
  kMaxRowBytes,
  noRows,
  noSuchRow,
  type Row,
  type RowSource,
  rowTooLong,
} from './rows.ts';

const kChunkBytes = 1 << 20;
const kNewline = 10;

const kArray = 'this is a JSON array, and not one object a line';
const kArrayAdvice = "convert it: jq -c '.[]' file.json > file.jsonl";
const kRowAdvice = 'correct this line, or remove it';

/** Options of {@link JsonlFile.open}. */
export interface JsonlOptions {
  signal?: AbortSignal;
}

/** The kinds of the options. */
const kTable: CallTable<JsonlOptions> = { signal: kCall.signal };

/** Growing list of byte offsets (exact up to 2^53). */
class Offsets {
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

/** Finds the lines that are not blank, fed chunk by chunk. @throws FormatError for a line above the limit, as soon as it is seen */
class LineFinder {
  readonly starts = new Offsets();
  /** Number of the line at the current position, from 1. */
  private line = 1;
  private base = 0;
  private lineStart = 0;
  private lineHasContent = false;

  constructor(private readonly path: string) {}

  feed(chunk: Uint8Array): void {
    let at = 0;
    if (this.base === 0 && chunk[0] === 0xef && chunk[1] === 0xbb && chunk[2] === 0xbf) {
      at = 3;
      this.lineStart = 3;
    }
    while (at < chunk.length) {
      if (!this.lineHasContent) {
        while (at < chunk.length && isBlank(chunk[at])) at++;
        if (at === chunk.length) break;
        if (chunk[at] !== kNewline) {
          this.starts.push(this.lineStart);
          this.lineHasContent = true;
        }
      }
      const newline = chunk.indexOf(kNewline, at);
      const end = newline < 0 ? chunk.length : newline;
      if (this.lineHasContent && this.base + end - this.lineStart > kMaxRowBytes) {
        throw rowTooLong(this.path, `:${this.line}`, this.lineStart);
      }
      if (newline < 0) break;
      this.line++;
      at = newline + 1;
      this.lineStart = this.base + at;
      this.lineHasContent = false;
    }
    this.base += chunk.length;
  }
}

function isBlank(byte: number | undefined): boolean {
  return byte === 0x20 || byte === 0x09 || byte === 0x0d;
}

/** A JSON-lines file of any size: lines are indexed by offset and read when asked for. */
export class JsonlFile implements RowSource {
  private window = { start: 0, bytes: new Uint8Array() as Uint8Array };
  /** Index of the row after the one that was read last. */
  private next = 0;

  private constructor(
    readonly path: string,
    private readonly file: FileHandle,
    private readonly starts: Float64Array,
    private readonly size: number,
  ) {}

  /**
   * Opens a file and indexes its lines, a chunk at a time.
   * @throws ArgumentError if there is no such file or it has no rows; FormatError for a line above 16 MiB, and as openRegular
   */
  static async open(path: string, options: JsonlOptions = {}): Promise<JsonlFile> {
    checkCall('data', options, kTable);
    const file = await openRegular(path).catch((error: unknown) => {
      throw cannotOpen(path, error);
    });
    try {
      const finder = new LineFinder(path);
      let size = 0;
      for await (const chunk of readChunks(path, file)) {
        options.signal?.throwIfAborted();
        finder.feed(chunk);
        size += chunk.length;
      }
      if (finder.starts.length === 0) throw noRows(path);
      return new JsonlFile(path, file, finder.starts.finish(), size);
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  get length(): number {
    return this.starts.length;
  }

  async row(index: number): Promise<Row> {
    const start = this.starts[index];
    if (start === undefined) {
      throw noSuchRow(this, index);
    }
    // Behind the row there may be any number of blanks.
    const end = Math.min(this.starts[index + 1] ?? this.size, start + kMaxRowBytes);
    const bytes = await this.read(index, start, end);
    const text = await this.decode(index, bytes);
    let value: unknown;
    try {
      value = JSON.parse(text);
    } catch (error) {
      // The file is one array over several lines, whose first line is no JSON by itself.
      if (index === 0 && /^\s*\[/.test(text)) throw await this.damaged(0, 1, kArray, kArrayAdvice);
      const column = (jsonErrorOffset(text) ?? 0) + 1;
      throw await this.damaged(index, column, `not valid JSON (${(error as Error).message})`);
    }
    if (Array.isArray(value) && this.length === 1) {
      throw await this.damaged(0, 1, kArray, kArrayAdvice);
    }
    if (value === null || typeof value !== 'object' || Array.isArray(value)) {
      const kind =
        value === null ? 'null' : Array.isArray(value) ? 'an array' : `a ${typeof value}`;
      throw await this.damaged(index, 1, `a row must be a JSON object, got ${kind}`);
    }
    return value as Row;
  }

  async where(index: number): Promise<string> {
    return `${this.path}:${await this.line(index)}`;
  }

  /** Closes the file; rows cannot be read afterwards. */
  async close(): Promise<void> {
    await this.file.close();
  }

  /** Reads bytes of the file. Rows that are read in order come from a window that is filled a chunk at a time. */
  private async read(index: number, start: number, end: number): Promise<Uint8Array> {
    const inOrder = index === this.next;
    this.next = index + 1;
    let { window } = this; // one object that is replaced as a whole, because reads may overlap
    if (start < window.start || end > window.start + window.bytes.length) {
      const ahead = Math.min(Math.max(end - start, kChunkBytes), this.size - start);
      const bytes = await this.readBytes(index, start, inOrder ? ahead : end - start);
      window = { start, bytes };
      this.window = window;
    }
    return window.bytes.subarray(start - window.start, end - window.start);
  }

  private async readBytes(index: number, start: number, length: number): Promise<Uint8Array> {
    const bytes = new Uint8Array(length);
    for (let filled = 0; filled < length; ) {
      const { bytesRead } = await this.file
        .read(bytes, filled, length - filled, start + filled)
        .catch((error: unknown) => {
          throw readError(this.path, error);
        });
      if (bytesRead === 0) {
        const advice = 'start again with a file that nothing writes to';
        throw await this.damaged(index, 1, 'the file has shrunk while in use', advice);
      }
      filled += bytesRead;
    }
    return bytes;
  }

  private async decode(index: number, bytes: Uint8Array): Promise<string> {
    try {
      return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
    } catch {
      const at = invalidUtf8Offset(bytes);
      const column = new TextDecoder().decode(bytes.subarray(0, at)).length + 1;
      throw await this.damaged(index, column, 'not valid UTF-8', kEncodingAdvice);
    }
  }

  /** The error for a damaged row; `column` counts UTF-16 units from 1. */
  private async damaged(
    index: number,
    column: number,
    what: string,
    advice = kRowAdvice,
  ): Promise<FormatError> {
    const where = `${this.path}:${await this.line(index)}:${column}`;
    const options = { path: this.path, advice, offset: this.starts[index] as number };
    return new FormatError(`${where}: ${what}`, options);
  }

  /** The row's line number from 1: blank lines count, so the file is read again up to the row. */
  private async line(index: number): Promise<number> {
    let left = this.starts[index] as number;
    let line = 1;
    for await (const chunk of readChunks(this.path, this.file)) {
      const part = chunk.subarray(0, Math.min(left, chunk.length));
      for (let at = part.indexOf(kNewline); at >= 0; at = part.indexOf(kNewline, at + 1)) line++;
      left -= part.length;
      if (left === 0) break;
    }
    return line;
  }
}

/** Reads a file in chunks, each of which is valid until the next one is asked for. */
async function* readChunks(path: string, file: FileHandle): AsyncGenerator<Uint8Array> {
  const buffer = new Uint8Array(kChunkBytes);
  for (let position = 0; ; ) {
    const { bytesRead } = await file
      .read(buffer, 0, buffer.length, position)
      .catch((error: unknown) => {
        throw readError(path, error);
      });
    if (bytesRead === 0) return;
    yield buffer.subarray(0, bytesRead);
    position += bytesRead;
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
