// Words for people in which the names of options stand as data, so that every reader sees them as he writes them: `maxLength` in a
// program, `--max-length` on the command line, `max_tokens` in a request to the server.

/** An option in a text. */
export interface Mention {
  /** The name of the option in the library. */
  readonly option: string;
  /** Its words in a program, `maxLength` or `overwrite: true`; or the name that the reader has given, which is kept. */
  readonly text: string;
  /** The value that the words give it. */
  readonly value?: unknown;
}

/** The way in which a front end writes an option. */
export type Spelling = (mention: Mention) => string;

/** Words with or without names of options. */
export type Text = string | Phrase;

/** Words with names of options. As a string it has them as a program writes them. */
export class Phrase {
  constructor(readonly parts: readonly (string | Mention)[]) {}

  in(spelling: Spelling): string {
    return this.parts.map((part) => (typeof part === 'string' ? part : spelling(part))).join('');
  }

  toString(): string {
    return this.in(({ text }) => text);
  }
}

/** The phrase that a template literal makes, in which options that stand in its values stay options. */
export function phrase(words: readonly string[], ...values: readonly unknown[]): Phrase {
  const parts = words.flatMap((word, i) => [...partsOf(values[i - 1] ?? ''), word]);
  return new Phrase(parts.filter((part) => part !== ''));
}

/** The parts of a text, or of anything else as a string. */
const partsOf = (value: unknown): Phrase['parts'] =>
  value instanceof Phrase ? value.parts : [String(value)];

/** A text as a phrase. */
export const phraseOf = (text: Text): Phrase => new Phrase(partsOf(text));

/**
 * An option's name in a phrase.
 * @param value a value that is given to it in these words: `overwrite: true` in a program, `--overwrite` on the command line
 */
export function option(name: string, value?: boolean | string | readonly string[]): Phrase {
  const text = value === undefined ? name : `${name}: ${literal(value)}`;
  return new Phrase([{ option: name, text, value }]);
}

function literal(value: boolean | string | readonly string[]): string {
  if (typeof value === 'object') return `[${value.map(literal).join(', ')}]`;
  return typeof value === 'string' ? `'${value}'` : String(value);
}
