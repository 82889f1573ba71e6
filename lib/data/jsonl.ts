/**
 * JSON Lines files that may be larger than memory: one pass records where each row begins (8 bytes per row), then rows are read by
 * index. Blank lines and a byte-order mark are skipped. A damaged line is an error naming file, line and column.
 */
import { type CallTable, checkCall, kCall } from '../options/call.ts';
import { JsonRows, markBytes, Offsets, openIndexed } from './json_rows.ts';
import { kMaxRowBytes, rowTooLong } from './rows.ts';

const kNewline = 10;

const kArray = 'this is a JSON array, and not one object a line';
const kArrayAdvice = "convert it: jq -c '.[]' file.json > file.jsonl";

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
    let at = this.base === 0 ? markBytes(chunk) : 0;
    if (this.base === 0) this.lineStart = at;
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
export class JsonlFile extends JsonRows {
  protected readonly advice = 'correct this line, or remove it';

  /**
   * Opens a file and indexes its lines, a chunk at a time.
   * @throws ArgumentError if there is no such file or it has no rows; FormatError for a line above 16 MiB, and as openRegular
   */
  static async open(path: string, options: JsonlOptions = {}): Promise<JsonlFile> {
    checkCall('data', options, kTable);
    return new JsonlFile(await openIndexed(path, options.signal, new LineFinder(path)));
  }

  // Behind the row there may be any number of blanks.
  protected end(index: number): number {
    const { starts, size } = this.indexed;
    return Math.min(starts[index + 1] ?? size, (starts[index] as number) + kMaxRowBytes);
  }

  protected place(line: number, _: number, before?: string): string {
    const column = before === undefined ? '' : `:${before.length + 1}`;
    return `${this.path}:${line}${column}`;
  }

  /** The file is one array, over one line or over several, whose first is no JSON by itself. */
  protected override async damagedFile(index: number, text: string, value: unknown) {
    const isArray = /^\s*\[/.test(text) && (value === undefined || this.length === 1);
    return index === 0 && isArray ? this.damaged(0, '', kArray, kArrayAdvice) : null;
  }
}
