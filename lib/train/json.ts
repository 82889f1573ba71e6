/**
 * JSON in which a number that is not finite stands as a text ("NaN", "Infinity", "-Infinity"), since JSON has no such numbers: the
 * loss of an evaluation may be one.
 */

/** Largest depth of lists and objects within each other. */
const kMaxDepth = 50;
const kNotFinite = ['NaN', 'Infinity', '-Infinity'];

/** The JSON of a value. */
export function toJson(value: unknown, indent = 0): string {
  return JSON.stringify(
    value,
    (_, part) => (typeof part === 'number' && !Number.isFinite(part) ? String(part) : part),
    indent,
  );
}

/**
 * The value of a JSON that {@link toJson} wrote.
 * @param texts fields that are texts; where any other field holds the text of such a number, it was a number
 * @throws SyntaxError for another text, or one that nests deeper than anything that is written
 */
export function fromJson(text: string, { texts }: { texts: readonly string[] }): unknown {
  const numbersOf = (part: unknown, depth: number): unknown => {
    if (depth > kMaxDepth) throw new SyntaxError(`nests deeper than ${kMaxDepth}`);
    if (Array.isArray(part)) return part.map((inner) => numbersOf(inner, depth + 1));
    if (typeof part === 'object' && part !== null) {
      return Object.fromEntries(
        Object.entries(part).map(([key, inner]) => [
          key,
          typeof inner === 'string' && texts.includes(key) ? inner : numbersOf(inner, depth + 1),
        ]),
      );
    }
    return kNotFinite.includes(part as string) ? Number(part) : part;
  };
  return numbersOf(JSON.parse(text), 0);
}
