/**
 * A file that is one JSON array of objects, which may be larger than memory: one pass records where each element begins and ends (16
 * bytes per row), then elements are parsed by index. A damaged element is an error naming file, line and row.
 */
import type { FileHandle } from 'node:fs/promises';
import { FormatError } from '../errors.ts';
import { openRegular } from '../io/regular_file.ts';
import { type CallTable, checkCall, kCall } from '../options/call.ts';
import {
  decodeUtf8,
  FileWindow,
  lineAt,
  markBytes,
  Offsets,
  openIndexed,
  readChunks,
} from './file_window.ts';
import { jsonErrorOffset } from './json_position.ts';
import {
  cannotOpen,
  kEncodingAdvice,
  kMaxRowBytes,
  kShrunk,
  kShrunkAdvice,
  noRows,
  noSuchRow,
  notARow,
  type Row,
  type RowSource,
  rowTooLong,
} from './rows.ts';

/** Options of {@link JsonArrayFile.open}. */
export interface JsonArrayOptions {
  signal?: AbortSignal;
}

/** The kinds of the options. */
const kTable: CallTable<JsonArrayOptions> = { signal: kCall.signal };

const kElementAdvice = 'correct this element, or remove it';
const kArrayAdvice = 'write the file again, as an array of objects or with one object a line';

const [kQuote, kBackslash, kComma] = [0x22, 0x5c, 0x2c];
/** Bytes that open and close arrays and objects. */
const [kOpenArray, kCloseArray, kOpenObject, kCloseObject] = [0x5b, 0x5d, 0x7b, 0x7d];

/** The place of the pass: before the array, where an element may or must begin, in one, or behind the array. */
type Place = 'before' | 'first' | 'next' | 'element' | 'after';

/**
 * Finds the elements of an array, fed chunk by chunk. Their contents are not checked, since each is parsed when it is read.
 * @throws FormatError for an element above the limit as soon as it is seen, and for what is no array
 */
class ElementFinder {
  readonly starts = new Offsets();
  readonly ends = new Offsets();
  private base = 0;
  private place: Place = 'before';
  private elementStart = 0;
  /** Number of arrays and objects that are open within the element. */
  private depth = 0;
  private inString = false;
  private escaped = false;

  constructor(private readonly path: string) {}

  feed(chunk: Uint8Array): void {
    for (let at = this.base === 0 ? markBytes(chunk) : 0; at < chunk.length; at++) {
      const byte = chunk[at] as number;
      if (this.inString) this.stringByte(byte);
      else if (this.place === 'element') this.elementByte(byte, this.base + at);
      else if (!isBlank(byte)) this.outerByte(byte, this.base + at);
    }
    this.base += chunk.length;
    if (this.place === 'element') this.checkLength(this.base);
  }

  /** Ends the pass. @throws FormatError for an array that is not closed */
  finish(): void {
    if (this.place !== 'after') throw this.wrong('the array is never closed', this.base);
  }

  private stringByte(byte: number): void {
    if (this.escaped) this.escaped = false;
    else if (byte === kBackslash) this.escaped = true;
    else if (byte === kQuote) this.inString = false;
  }

  private elementByte(byte: number, offset: number): void {
    if (byte === kQuote) this.inString = true;
    else if (byte === kOpenArray || byte === kOpenObject) this.depth++;
    else if (this.depth > 0) {
      if (byte === kCloseArray || byte === kCloseObject) this.depth--;
    } else if (byte === kComma || byte === kCloseArray) {
      this.checkLength(offset);
      this.ends.push(offset);
      this.place = byte === kComma ? 'next' : 'after';
    }
  }

  /** Reads a byte outside of the elements that is not blank. */
  private outerByte(byte: number, offset: number): void {
    if (this.place === 'before' && byte === kOpenArray) this.place = 'first';
    else if (this.place === 'first' && byte === kCloseArray) this.place = 'after';
    else if (this.place === 'after') throw this.wrong('there is more after the array', offset);
    else if (this.place === 'before' || byte === kComma || byte === kCloseArray) {
      throw this.wrong(`'${String.fromCharCode(byte)}' is in the place of an element`, offset);
    } else {
      this.starts.push(offset);
      this.elementStart = offset;
      this.place = 'element';
      this.elementByte(byte, offset);
    }
  }

  private checkLength(end: number): void {
    if (end - this.elementStart <= kMaxRowBytes) return;
    throw rowTooLong(this.path, ` row ${this.starts.length - 1}`, this.elementStart);
  }

  private wrong(what: string, offset: number): FormatError {
    const where = `${this.path}: after ${this.starts.length} rows, at byte ${offset}`;
    return new FormatError(`${where}: ${what}`, { path: this.path, offset, advice: kArrayAdvice });
  }
}

function isBlank(byte: number): boolean {
  return byte === 0x20 || byte === 0x09 || byte === 0x0d || byte === 0x0a;
}

/** A JSON array of any size as rows: elements are indexed by offset and parsed when asked for. */
export class JsonArrayFile implements RowSource {
  private readonly window: FileWindow;

  private constructor(
    readonly path: string,
    private readonly file: FileHandle,
    private readonly index: { readonly starts: Float64Array; readonly ends: Float64Array },
    size: number,
  ) {
    this.window = new FileWindow(path, file, size);
  }

  /**
   * Opens a file and indexes its elements, a chunk at a time.
   * @throws ArgumentError if there is no such file or the array is empty; FormatError for an element above 16 MiB, for an array that
   *   is not closed or has something else than elements, and as openRegular
   */
  static async open(path: string, options: JsonArrayOptions = {}): Promise<JsonArrayFile> {
    checkCall('data', options, kTable);
    const finder = new ElementFinder(path);
    return await openIndexed(path, options.signal, {
      index: (chunk) => finder.feed(chunk),
      make: (file, size) => {
        finder.finish();
        if (finder.starts.length === 0) throw noRows(path);
        const index = { starts: finder.starts.finish(), ends: finder.ends.finish() };
        return new JsonArrayFile(path, file, index, size);
      },
    });
  }

  /** Whether a file begins with an array, after a byte-order mark and blanks. @throws as openRegular does */
  static async isArray(path: string): Promise<boolean> {
    const file = await openRegular(path).catch((error: unknown) => {
      throw cannotOpen(path, error);
    });
    try {
      for await (const chunk of readChunks(path, file)) {
        const first = chunk.subarray(markBytes(chunk)).find((byte) => !isBlank(byte));
        // A file whose first megabyte is blank is left to the reader of JSON Lines.
        return first === kOpenArray;
      }
      return false;
    } finally {
      await file.close();
    }
  }

  get length(): number {
    return this.index.starts.length;
  }

  async row(index: number): Promise<Row> {
    const [start, end] = [this.index.starts[index], this.index.ends[index]];
    if (start === undefined || end === undefined) throw noSuchRow(this, index);
    const bytes = await this.window.read(index, start, end);
    if (bytes === null) throw await this.damaged(index, kShrunk, { advice: kShrunkAdvice });
    const { text } = decodeUtf8(bytes);
    if (text === null) {
      throw await this.damaged(index, 'not valid UTF-8', { advice: kEncodingAdvice });
    }
    let value: unknown;
    try {
      value = JSON.parse(text);
    } catch (error) {
      const lines = text.slice(0, jsonErrorOffset(text) ?? 0).split('\n').length - 1;
      throw await this.damaged(index, `not valid JSON (${(error as Error).message})`, { lines });
    }
    const wrong = notARow(value);
    if (wrong !== null) throw await this.damaged(index, wrong);
    return value as Row;
  }

  async where(index: number): Promise<string> {
    return this.place(index, 0);
  }

  /** Closes the file; rows cannot be read afterwards. */
  async close(): Promise<void> {
    await this.file.close();
  }

  /** The place of an element for messages. @param lines number of lines below its first */
  private async place(index: number, lines: number): Promise<string> {
    const line = await lineAt(this.path, this.file, this.index.starts[index] as number);
    return `${this.path}:${line + lines} (row ${index})`;
  }

  private async damaged(
    index: number,
    what: string,
    { advice = kElementAdvice, lines = 0 }: { advice?: string; lines?: number } = {},
  ): Promise<FormatError> {
    const offset = this.index.starts[index] as number;
    const message = `${await this.place(index, lines)}: ${what}`;
    return new FormatError(message, { path: this.path, advice, offset });
  }
}
