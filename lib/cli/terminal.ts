/** Output streams: colours, which only terminals get, closed pipes, and the formatting of numbers. */
import type { EventEmitter } from 'node:events';
import { styleText } from 'node:util';

export interface OutputStream {
  write(text: string): unknown;
  isTTY?: boolean;
  columns?: number;
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

/** A function that styles text, or returns it unchanged where colours are off. */
export function styler(colour: boolean): (text: string, ...styles: Style[]) => string {
  // Without validateStream, newer versions of Node check stdout, even for text that goes to another stream.
  return (text, ...styles) => (colour ? styleText(styles, text, { validateStream: false }) : text);
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
