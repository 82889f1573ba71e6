/**
 * JSON in which a number that is not finite stands as a text ("NaN", "Infinity", "-Infinity"), since JSON has no such numbers: the
 * loss of an evaluation may be one.
 */

const kNotFinite = ['NaN', 'Infinity', '-Infinity'];

/** The JSON of a value. */
export function toJson(value: unknown, indent = 0): string {
  return JSON.stringify(
    value,
    (_, part) => (typeof part === 'number' && !Number.isFinite(part) ? String(part) : part),
    indent,
  );
}

/** The value of a JSON that {@link toJson} wrote. @throws SyntaxError for another text */
export function fromJson(text: string): unknown {
  return JSON.parse(text, (_, part) => (kNotFinite.includes(part) ? Number(part) : part));
}
