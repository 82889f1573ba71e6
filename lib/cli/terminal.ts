/** What a stream can show: colours and redrawn lines are for terminals only. And what becomes of one that nobody reads. */
import type { EventEmitter } from 'node:events';
import { styleText } from 'node:util';

export interface OutputStream {
  write(text: string): unknown;
  isTTY?: boolean;
  columns?: number;
}

/** A pipe whose reader has gone, and a terminal that has hung up. */
const kUnread = ['EPIPE', 'EIO'];

/** What is written to a stream that nobody reads any more is lost, and no fault: `train | head` goes on and saves. */
export function outliveReader(stream: EventEmitter): void {
  stream.on('error', (error: NodeJS.ErrnoException) => {
    if (!kUnread.includes(error.code ?? '')) throw error;
  });
}

type Style = 'bold' | 'dim' | 'red' | 'yellow' | 'green' | 'underline';

/** Colours on a terminal, unless NO_COLOR is set; FORCE_COLOR sets them everywhere. */
export function hasColour(stream: OutputStream, env: NodeJS.ProcessEnv = process.env): boolean {
  if (env.NO_COLOR) return false;
  if (env.FORCE_COLOR && env.FORCE_COLOR !== '0') return true;
  return stream.isTTY === true && env.TERM !== 'dumb';
}

/** A function that styles text, or leaves it alone. */
export function styler(colour: boolean): (text: string, ...styles: Style[]) => string {
  // Newer Nodes would look at stdout, whichever stream the text is for.
  return (text, ...styles) => (colour ? styleText(styles, text, { validateStream: false }) : text);
}

/** 1536 -> `1.5 KiB`. */
export function formatBytes(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let unit = 0;
  let value = bytes;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${unit === 0 ? value : value.toFixed(value < 10 ? 2 : 1)} ${units[unit]}`;
}

/** 3725 -> `1h02m`; 65 -> `1m05s`; 4.2 -> `4s`. */
export function formatSeconds(seconds: number): string {
  if (!Number.isFinite(seconds)) return '?';
  const whole = Math.round(seconds);
  const two = (n: number) => String(n).padStart(2, '0');
  if (whole < 60) return `${whole}s`;
  if (whole < 3600) return `${Math.floor(whole / 60)}m${two(whole % 60)}s`;
  return `${Math.floor(whole / 3600)}h${two(Math.floor((whole % 3600) / 60))}m`;
}

/** 12345678 -> `12.3 M`. */
export function formatCount(count: number): string {
  if (count < 10_000) return String(count);
  const [divisor, unit] = count < 1e6 ? [1e3, 'k'] : count < 1e9 ? [1e6, 'M'] : [1e9, 'G'];
  return `${(count / divisor).toFixed(1)} ${unit}`;
}

/** A number with so many digits; a divergence that rounding puts just below 0 is 0. */
export function fixed(value: number, digits = 4): string {
  return value.toFixed(digits).replace(/^-(0\.0+)$/, '$1');
}
