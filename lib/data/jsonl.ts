/**
 * JSON Lines files that may be larger than memory: one pass records where each row begins (8 bytes per row), then rows are read by
 * index. Blank lines and a byte-order mark are skipped. A damaged line is an error naming file, line and column.
 */
import type { FileHandle } from 'node:fs/promises';
import { FormatError } from '../errors.ts';
import { type CallTable, checkCall, kCall } from '../options/call.ts';
import { decodeUtf8, FileWindow, lineAt, markBytes, Offsets, openIndexed } from './file_window.ts';
import { jsonErrorOffset } from './json_position.ts';
import {
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
    if (this.base === 0) {
      at = markBytes(chunk);
      this.lineStart = at;
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
  private readonly window: FileWindow;

  private constructor(
    readonly path: string,
    private readonly file: FileHandle,
    private readonly starts: Float64Array,
    private readonly size: number,
  ) {
    this.window = new FileWindow(path, file, size);
  }

  /**
   * Opens a file and indexes its lines, a chunk at a time.
   * @throws ArgumentError if there is no such file or it has no rows; FormatError for a line above 16 MiB, and as openRegular
   */
  static async open(path: string, options: JsonlOptions = {}): Promise<JsonlFile> {
    checkCall('data', options, kTable);
    const finder = new LineFinder(path);
    return await openIndexed(path, options.signal, {
      index: (chunk) => finder.feed(chunk),
      make: (file, size) => {
        if (finder.starts.length === 0) throw noRows(path);
        return new JsonlFile(path, file, finder.starts.finish(), size);
      },
    });
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
    const bytes = await this.window.read(index, start, end);
    if (bytes === null) throw await this.damaged(index, 1, kShrunk, kShrunkAdvice);
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
    const wrong = notARow(value);
    if (wrong !== null) throw await this.damaged(index, 1, wrong);
    return value as Row;
  }

  async where(index: number): Promise<string> {
    return `${this.path}:${await this.line(index)}`;
  }

  /** Closes the file; rows cannot be read afterwards. */
  async close(): Promise<void> {
    await this.file.close();
  }

  private async decode(index: number, bytes: Uint8Array): Promise<string> {
    const decoded = decodeUtf8(bytes);
    if (decoded.text !== null) return decoded.text;
    const column = decoded.good.length + 1;
    throw await this.damaged(index, column, 'not valid UTF-8', kEncodingAdvice);
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

  /** The row's line number from 1. */
  private line(index: number): Promise<number> {
    return lineAt(this.path, this.file, this.starts[index] as number);
  }
}
