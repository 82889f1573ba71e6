/** Output streams: what may reach a terminal, colours, which only terminals get, closed pipes, and the formatting of numbers. */
import { randomBytes } from 'node:crypto';
import type { EventEmitter } from 'node:events';
import { styleText } from 'node:util';
import { printableLines, withoutControls } from '../shown.ts';

export interface OutputStream {
  write(text: string): unknown;
  /** Writes a code that controls the terminal, where write() would show it as text. */
  control?(code: string): unknown;
  readonly isTTY?: boolean | undefined;
  readonly columns?: number | undefined;
}

const kEscape = '\u001b[';
/** The mark that {@link styler} writes in the place of an escape. It is drawn for each process, so that no name in a file can have it. */
const kMark = `<${randomBytes(8).toString('hex')}>`;
const kStyles = new RegExp(`(${kMark}\\d+m)`);

/**
 * A stream that shows what would control a terminal, but for the styles of {@link styler}: names in files, answers of servers and texts of
 * models are in much of what commands write, and a log is read on a terminal later.
 */
export class ShownStream implements OutputStream {
  constructor(private readonly stream: OutputStream) {}

  get isTTY(): boolean | undefined {
    return this.stream.isTTY;
  }

  get columns(): number | undefined {
    return this.stream.columns;
  }

  write(text: string): unknown {
    return this.stream.write(besideStyles(text, printableLines).replaceAll(kMark, kEscape));
  }

  control(code: string): unknown {
    return this.stream.write(code);
  }
}

/** Replaces all of a text but the styles of {@link styler}. */
export function besideStyles(text: string, replaced: (plain: string) => string): string {
  return text
    .split(kStyles)
    .map((part, i) => (i % 2 ? part : replaced(part)))
    .join('');
}

/** Writes a model's text: as it is to a file or a pipe; on a terminal, what would control that is shown. */
export function writeAnswer(stream: OutputStream, text: string): void {
  stream.write(stream.isTTY === true ? withoutControls(text) : text);
}

/** A stream that a user, a pipe or a test writes lines to. */
export type InputStream = NodeJS.ReadableStream & { readonly isTTY?: boolean };

/** Error codes of a pipe whose reader has exited and of a terminal that has been closed. */
const kClosedPipeCodes = ['EPIPE', 'EIO'];

/** Ignores write errors of a stream whose reader has exited, so that `train | head` continues training and saves its result. */
export function ignoreClosedPipe(stream: EventEmitter): void {
  stream.on('error', (error: NodeJS.ErrnoException) => {
    if (!kClosedPipeCodes.includes(error.code ?? '')) throw error;
  });
}

type Style = 'bold' | 'dim' | 'red' | 'yellow' | 'green' | 'underline';

/** Whether to use colours: on a terminal unless NO_COLOR is set; FORCE_COLOR enables them on every stream. */
export function hasColour(stream: OutputStream, env: NodeJS.ProcessEnv = process.env): boolean {
  if (env.NO_COLOR) return false;
  if (env.FORCE_COLOR && env.FORCE_COLOR !== '0') return true;
  return stream.isTTY === true && env.TERM !== 'dumb';
}

/** A function that styles text for a {@link ShownStream}, or returns it unchanged where colours are off. */
export function styler(colour: boolean): (text: string, ...styles: Style[]) => string {
  if (!colour) return (text) => text;
  return (text, ...styles) => {
    // Without validateStream, newer versions of Node check stdout, even for text that goes to another stream.
    const codes = styleText(styles, '\n', { validateStream: false });
    const [begin = '', end = ''] = codes.replaceAll(kEscape, kMark).split('\n');
    return begin + text + end;
  };
}

/** A duration as text: 3725 becomes `1h02m`, 65 becomes `1m05s`, and 4.2 becomes `4s`. */
export function formatSeconds(seconds: number): string {
  if (!Number.isFinite(seconds)) return '?';
  const whole = Math.round(seconds);
  const two = (n: number) => String(n).padStart(2, '0');
  if (whole < 60) return `${whole}s`;
  if (whole < 3600) return `${Math.floor(whole / 60)}m${two(whole % 60)}s`;
  return `${Math.floor(whole / 3600)}h${two(Math.floor((whole % 3600) / 60))}m`;
}

/** A count as text: 12345678 becomes `12.3 M`. */
export function formatCount(count: number): string {
  if (count < 10_000) return String(count);
  const [divisor, unit] = count < 1e6 ? [1e3, 'k'] : count < 1e9 ? [1e6, 'M'] : [1e9, 'G'];
  return `${(count / divisor).toFixed(1)} ${unit}`;
}

/**
 * A number with a fixed count of decimals. A value that rounds to minus zero, such as a divergence just below 0, is shown as 0.
 */
export function fixed(value: number, digits = 4): string {
  return value.toFixed(digits).replace(/^-(0\.0+)$/, '$1');
}
