/**
 * TSV and CSV files as rows. TSV has one row per line and no quoting, as in GLUE's files; CSV is quoted as in RFC 4180 (a quoted
 * field may contain commas, line breaks and quotes, which are doubled). The file is held in memory; rows are parsed when they are read.
 */
import { constants } from 'node:buffer';
import { setImmediate } from 'node:timers/promises';
import { FormatError, fileError } from '../errors.ts';
import { readBytes } from '../io/regular_file.ts';
import { type CallTable, checkCall, kCall, oneOf } from '../options/call.ts';
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

/** Options for reading a TSV or CSV file. */
export interface DelimitedOptions {
  /** Names of the columns, for a file without a header, whose first line is a row. Default: the first line names them. */
  columns?: readonly string[];
  /** Separator of fields. Default: a comma for a path that ends in .csv (.CSV), else a tab. */
  separator?: ',' | '\t';
  signal?: AbortSignal;
}

/** The kinds of the options. */
const kTable: CallTable<DelimitedOptions> = {
  columns: kCall.texts,
  separator: { ...oneOf([',', '\t']), wanted: 'a comma or a tab' },
  signal: kCall.signal,
};

const kColumnsAdvice =
  "rename one, or name the columns with columns: ['label', 'text'] where the first line is a row";
const kRowAdvice = 'correct this line, or remove it';

/** The start of a record: its offset in the text, and its line, counted from 1. */
interface RecordStart {
  readonly offset: number;
  readonly line: number;
}

/** A TSV or CSV file as rows. */
export class DelimitedFile implements RowSource {
  private constructor(
    readonly path: string,
    private readonly text: string,
    private readonly starts: readonly RecordStart[],
    private readonly form: { columns: readonly string[]; separator: ',' | '\t' },
  ) {}

  /**
   * Reads a file and finds its rows.
   * @throws ArgumentError if there is no such file or it has no rows; FormatError for text that is not UTF-8, a row above 16 MiB, a
   *   quote that never closes, or two columns of one name, and as openRegular
   */
  static async open(path: string, options: DelimitedOptions = {}): Promise<DelimitedFile> {
    checkCall('data', options, kTable);
    const separator = options.separator ?? (/\.csv$/i.test(path) ? ',' : '\t');
    const { signal } = options;
    const text = await decode(path, await bytesOf(path), signal);
    const starts = await findRecords(path, text, { separator, signal });
    let { columns } = options;
    if (columns === undefined) {
      const header = starts.shift();
      columns = header ? splitRecord(text, header.offset, separator).fields : [];
    }
    const duplicate = columns.find((name, i) => columns.indexOf(name) !== i);
    if (duplicate !== undefined) {
      throw fileError(path, `two columns are called ${JSON.stringify(duplicate)}`, kColumnsAdvice);
    }
    if (starts.length === 0) throw noRows(path);
    return new DelimitedFile(path, text, starts, { columns, separator });
  }

  get length(): number {
    return this.starts.length;
  }

  async row(index: number): Promise<Row> {
    const start = this.starts[index];
    if (start === undefined) {
      throw noSuchRow(this, index);
    }
    const { columns, separator } = this.form;
    const { fields } = splitRecord(this.text, start.offset, separator);
    if (fields.length !== columns.length) {
      throw new FormatError(
        `${this.path}:${start.line}: ${fields.length} fields, but there are ${columns.length} columns (${columns.join(', ')})`,
        { path: this.path, advice: kRowAdvice },
      );
    }
    return Object.fromEntries(columns.map((name, i) => [name, fields[i]]));
  }

  async where(index: number): Promise<string> {
    return `${this.path}:${this.starts[index]?.line}`;
  }

  async close(): Promise<void> {}
}

async function bytesOf(path: string): Promise<Uint8Array> {
  try {
    // A string cannot be longer.
    return await readBytes(path, { limit: constants.MAX_STRING_LENGTH });
  } catch (error) {
    throw cannotOpen(path, error);
  }
}

/** Characters or bytes that are read between two yields to the event loop. */
const kSlice = 4 * 2 ** 20;

async function decode(
  path: string,
  bytes: Uint8Array,
  signal: AbortSignal | undefined,
): Promise<string> {
  try {
    const decoder = new TextDecoder('utf-8', { fatal: true });
    let text = '';
    for (let at = 0; at < bytes.length; at += kSlice) {
      if (at > 0) await setImmediate();
      signal?.throwIfAborted();
      text += decoder.decode(bytes.subarray(at, at + kSlice), { stream: true });
    }
    return text + decoder.decode();
  } catch {
    signal?.throwIfAborted();
    let line = 1;
    for (let start = 0; start < bytes.length; line++) {
      const newline = bytes.indexOf(10, start);
      const end = newline < 0 ? bytes.length : newline;
      try {
        new TextDecoder('utf-8', { fatal: true }).decode(bytes.subarray(start, end));
      } catch {
        break;
      }
      start = end + 1;
    }
    throw new FormatError(`${path}:${line}: not valid UTF-8`, { path, advice: kEncodingAdvice });
  }
}

async function findRecords(
  path: string,
  text: string,
  { separator, signal }: { separator: ',' | '\t'; signal: AbortSignal | undefined },
): Promise<RecordStart[]> {
  const starts: RecordStart[] = [];
  let line = 1;
  let yieldAt = kSlice;
  for (let offset = 0; offset < text.length; ) {
    if (offset >= yieldAt) {
      await setImmediate();
      signal?.throwIfAborted();
      yieldAt = offset + kSlice;
    }
    const { end, lines, closed, blank } = splitRecord(text, offset, separator);
    if (!closed) {
      const advice = 'close it, or write a quote inside a field twice ("")';
      throw new FormatError(`${path}:${line}: a quote is never closed`, { path, advice });
    }
    if (end - offset > kMaxRowBytes) throw rowTooLong(path, `:${line}`);
    if (!blank) starts.push({ offset, line });
    line += lines;
    offset = end;
  }
  return starts;
}

interface Record {
  readonly fields: string[];
  /** Offset of the next record. */
  readonly end: number;
  /** Number of lines that this record spans. */
  readonly lines: number;
  readonly closed: boolean;
  readonly blank: boolean;
}

function splitRecord(text: string, start: number, separator: ',' | '\t'): Record {
  return separator === '\t' ? splitTabs(text, start) : splitQuoted(text, start);
}

function splitTabs(text: string, start: number): Record {
  const newline = text.indexOf('\n', start);
  const end = newline < 0 ? text.length : newline;
  const line = text.slice(start, text[end - 1] === '\r' && end > start ? end - 1 : end);
  return { fields: line.split('\t'), end: end + 1, lines: 1, closed: true, blank: line === '' };
}

function splitQuoted(text: string, start: number): Record {
  const fields: string[] = [];
  let [at, lines, closed] = [start, 1, true];
  for (;;) {
    let field = '';
    if (text[at] === '"') {
      const quoted = readQuoted(text, at + 1);
      field = quoted.value;
      at = quoted.end;
      lines += quoted.lines;
      closed &&= quoted.closed;
    }
    const rest = /[,\n]/g;
    rest.lastIndex = at;
    const stop = rest.exec(text)?.index ?? text.length;
    const carriage = text[stop] !== ',' && text[stop - 1] === '\r' && stop > at;
    field += text.slice(at, carriage ? stop - 1 : stop);
    fields.push(field);
    at = stop + 1;
    if (text[stop] !== ',') break;
  }
  return { fields, end: at, lines, closed, blank: fields.length === 1 && fields[0] === '' };
}

/** Reads a quoted field, from after the opening quote to after the closing one. */
function readQuoted(
  text: string,
  start: number,
): { value: string; end: number; lines: number; closed: boolean } {
  let value = '';
  for (let at = start; ; ) {
    const quote = text.indexOf('"', at);
    const closed = quote >= 0;
    value += text.slice(at, closed ? quote : text.length);
    if (closed && text[quote + 1] === '"') {
      value += '"';
      at = quote + 2;
      continue;
    }
    const lines = value.split('\n').length - 1;
    return { value, end: closed ? quote + 1 : text.length, lines, closed };
  }
}
