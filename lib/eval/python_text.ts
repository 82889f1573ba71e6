/** Functions of Python on texts, by whose results lm-evaluation-harness makes prompts and counts words. */

/** The characters that Python's strip() and \s count as blanks: JavaScript's without the byte-order mark, with some controls. */
const kBlank =
  '\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000';
const kBlanks = new RegExp(`[${kBlank}]+`, 'g');
const kBlankEnd = new RegExp(`[${kBlank}]$`);
const kBlankStart = new RegExp(`^[${kBlank}]+`);

/** Removes blanks at the end: `text.rstrip()`. */
export function stripEnd(text: string): string {
  let end = text.length;
  // An expression with + before $ would take quadratic time on long runs of blanks.
  while (end > 0 && kBlankEnd.test(text[end - 1] as string)) end--;
  return text.slice(0, end);
}

/** Removes blanks at both ends: `text.strip()`. */
export function strip(text: string): string {
  return stripEnd(text.replace(kBlankStart, ''));
}

/** The number of pieces of `re.split(r"\s+", text)`: blanks at an end make an empty one, which counts. */
export function countWords(text: string): number {
  return text.split(kBlanks).length;
}

/** The first character in upper case and the rest in lower case: `text.capitalize()`. */
export function capitalize(text: string): string {
  const [first = '', ...rest] = text;
  return first.toUpperCase() + rest.join('').toLowerCase();
}
