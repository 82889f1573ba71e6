/**
 * Values of any type and texts of files, servers and clients as they appear in messages, logs and on terminals. No other code makes
 * them printable (test/layers.test.ts).
 */

/** Largest number of characters of a value that a message shows. */
const kMost = 200;

/** Control, format and unpaired characters, and separators of lines: terminals obey some, and readers see none. */
const kInvisible = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/u;
const kAllInvisible = new RegExp(kInvisible, 'gu');
/** The same without line breaks and tabs. */
const kInvisibleInLines = new RegExp(`(?![\\n\\t])${kInvisible.source}`, 'gu');
/**
 * The characters by which a text could control a terminal or show its letters in another order. Joiners, marks of direction and
 * soft hyphens are letters of languages and of emoji.
 */
const kControls = /(?![\n\t])\p{Cc}|[\u202a-\u202e\u2066-\u2069]/gu;

/** Whether a text has only characters that are seen. */
export const isPrintable = (text: string): boolean => !kInvisible.test(text);

/**
 * A text that a file, a server or a client says, for a message or a log: one line in which invisible characters are escapes of JSON
 * (`\n`, `\u001b`), so that it neither forges a line nor moves a cursor, and two names that differ look different. Doing it twice
 * changes nothing.
 */
export const oneLine = (text: string): string => text.replace(kAllInvisible, escaped);

/**
 * A text as {@link oneLine}, and cut where it is long.
 * @param most largest number of characters of the text. Default 200
 */
export function printable(text: string, most = kMost): string {
  if (text.length <= most) return oneLine(text);
  // Half of a pair at the end is cut as well.
  return `${oneLine(text.slice(0, most).replace(/[\ud800-\udbff]$/, ''))}...`;
}

/** A text of several lines, such as a report, in which line breaks and tabs stay and all else is as in {@link oneLine}. */
export const printableLines = (text: string): string => text.replace(kInvisibleInLines, escaped);

/** A model's text for a terminal: characters that control it are shown as escapes, all others stay. */
export const withoutControls = (text: string): string => text.replace(kControls, escaped);

/**
 * A value as JSON, in which invisible characters are escapes also where JSON allows them. Readers of JSON get the same value.
 * @param indent number of spaces by which the lines are indented. Default: one line
 */
export function printableJson(value: unknown, indent?: number): string {
  return printableLines(JSON.stringify(value, null, indent));
}

/** The name, the message and the calls of an error that is a bug: the message has one line, as those of the library have. */
export function printableStack(error: unknown): string {
  if (!(error instanceof Error)) return oneLine(String(error));
  const { name, message, stack = '' } = error;
  const calls = stack.slice(stack.indexOf(message) + message.length);
  const head = oneLine(`${name}: ${message}`);
  return head + printableLines(calls.slice(Math.max(0, calls.indexOf('\n'))));
}

/** An invisible character as JSON writes it. */
function escaped(char: string): string {
  const short = { '\n': '\\n', '\r': '\\r', '\t': '\\t' }[char];
  if (short !== undefined) return short;
  const units = Array.from({ length: char.length }, (_, i) => char.charCodeAt(i));
  return units.map((unit) => `\\u${unit.toString(16).padStart(4, '0')}`).join('');
}

/**
 * A value as text for a message: as JSON, and cut where it is long. What JSON does not have is named: `NaN`, `5n`, `a function`,
 * `a Map`, and `nothing` for undefined. It never throws, whatever the value is.
 * @param most largest number of characters. Default 200
 */
export function shown(value: unknown, most = kMost): string {
  return printable(textOf(value), most);
}

function textOf(value: unknown): string {
  try {
    return nameOf(value) ?? JSON.stringify(value, (key, part) => (key === '' ? part : inner(part)));
  } catch {
    // It contains itself, nests too deeply, or has code of its own that throws.
    return Array.isArray(value) ? 'a list' : 'an object';
  }
}

/** A part of a list or an object in the form in which JSON shows it. */
function inner(part: unknown): unknown {
  return nameOf(part) ?? part;
}

/** The name of a value that JSON does not have; null for any other. */
function nameOf(value: unknown): string | null {
  switch (typeof value) {
    case 'undefined':
      return 'nothing';
    case 'function':
      return 'a function';
    case 'symbol':
      return 'a symbol';
    case 'bigint':
      return `${value}n`;
    case 'number':
      return Number.isFinite(value) ? null : String(value);
    case 'object':
      return value === null ? null : classOf(value);
    default:
      return null;
  }
}

/** The class of an object, with its article; null for lists and plain objects. */
function classOf(value: object): string | null {
  const prototype: unknown = Object.getPrototypeOf(value);
  if (Array.isArray(value) || prototype === Object.prototype || prototype === null) return null;
  const { name } = value.constructor;
  return `${/^[AEIOU]/.test(name) ? 'an' : 'a'} ${name}`;
}
