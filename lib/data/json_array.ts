/**
 * A file that is one JSON array of objects, which may be larger than memory: one pass records where each element begins and ends (16
 * bytes per row), then elements are parsed by index. A damaged element is an error naming file, line and row.
 */
import { FormatError } from '../errors.ts';
import { JsonRows, markBytes, Offsets, openIndexed, readChunks } from './json_rows.ts';
import { kMaxRowBytes, openData, rowTooLong } from './rows.ts';

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
export class JsonArrayFile extends JsonRows {
  protected readonly advice = 'correct this element, or remove it';
  private ends: Float64Array = new Float64Array();

  /**
   * Opens a file and indexes its elements, a chunk at a time.
   * @throws ArgumentError if there is no such file or the array is empty; FormatError for an element above 16 MiB, for an array that
   *   is not closed or has something else than elements, and as openRegular
   */
  static async open(path: string, signal?: AbortSignal): Promise<JsonArrayFile> {
    const finder = new ElementFinder(path);
    const opened = new JsonArrayFile(await openIndexed(path, signal, finder));
    opened.ends = finder.ends.finish();
    return opened;
  }

  /** Whether a file begins with an array, after a byte-order mark and blanks. @throws as openRegular does */
  static async isArray(path: string): Promise<boolean> {
    const file = await openData(path);
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

  protected end(index: number): number {
    return this.ends[index] as number;
  }

  protected place(line: number, index: number, before = ''): string {
    return `${this.path}:${line + before.split('\n').length - 1} (row ${index})`;
  }
}
