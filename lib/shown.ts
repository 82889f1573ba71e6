/** Values of any type as they appear in messages. */

/** Largest number of characters of a value that a message shows. */
const kMost = 200;

/**
 * A value as text for a message: as JSON, and cut where it is long. What JSON does not have is named: `NaN`, `5n`, `a function`,
 * `a Map`, and `nothing` for undefined. It never throws, whatever the value is.
 * @param most largest number of characters. Default 200
 */
export function shown(value: unknown, most = kMost): string {
  const text = textOf(value);
  return text.length > most ? `${text.slice(0, most)}...` : text;
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
