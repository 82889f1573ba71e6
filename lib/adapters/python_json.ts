/**
 * JSON as Python's `json.dumps(value, indent=2, sort_keys=True)` writes it, because PEFT's adapter_config.json is
 * compared byte by byte by its users: sorted keys, ASCII only, floats kept apart from integers (0.0, 1e-05).
 */
import { ArgumentError } from '../errors.ts';

/** A number that is a float in Python: written with a point or an exponent even when it is whole. */
export class PythonFloat {
  constructor(readonly value: number) {}
}

export type PythonJson =
  | null
  | boolean
  | number
  | string
  | PythonFloat
  | PythonJson[]
  | { [key: string]: PythonJson };

export function pythonJson(value: PythonJson, indent = ''): string {
  if (value === null || typeof value === 'boolean') return String(value);
  if (typeof value === 'string') return pythonString(value);
  if (typeof value === 'number')
    return Number.isInteger(value) ? integer(value) : pythonFloat(value);
  if (value instanceof PythonFloat) return pythonFloat(value.value);
  const inner = `${indent}  `;
  const entries = Array.isArray(value)
    ? []
    : Object.entries(value).sort(([a], [b]) => compareCodePoints(a, b));
  const [open, close, items] = Array.isArray(value)
    ? ['[', ']', value.map((item) => pythonJson(item, inner))]
    : ['{', '}', entries.map(([key, item]) => `${pythonString(key)}: ${pythonJson(item, inner)}`)];
  if (items.length === 0) return open + close;
  return `${open}\n${items.map((item) => inner + item).join(',\n')}\n${indent}${close}`;
}

/** Compares strings as Python does, by code point, which is the order of their UTF-8 bytes. */
export function compareCodePoints(a: string, b: string): number {
  return Buffer.compare(Buffer.from(a), Buffer.from(b));
}

function pythonString(text: string): string {
  return JSON.stringify(text).replace(
    /[\u007f-\uffff]/g,
    (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`,
  );
}

function integer(value: number): string {
  if (!Number.isSafeInteger(value))
    throw new ArgumentError(`pythonJson: an integer must be a safe one, got ${value}`);
  return String(value);
}

/** Python's repr(float): the shortest digits, an exponent below 1e-4 and from 1e16 on, two exponent digits at least. */
function pythonFloat(value: number): string {
  if (!Number.isFinite(value))
    throw new ArgumentError(`pythonJson: a number must be finite, got ${value}`);
  const size = Math.abs(value);
  if (value === 0) return Object.is(value, -0) ? '-0.0' : '0.0';
  if (size >= 1e-4 && size < 1e16) {
    const text = String(value);
    return text.includes('.') ? text : `${text}.0`;
  }
  const [digits, exponent] = value.toExponential().split('e') as [string, string];
  const sign = exponent.startsWith('-') ? '-' : '+';
  return `${digits}e${sign}${exponent.replace(/^[+-]/, '').padStart(2, '0')}`;
}
