/**
 * Stop strings in a text that arrives in parts. The text ends before the stop string that is complete first, of several that are
 * complete with the same character before the longest, however the text is divided into parts. Text that may be the beginning of
 * a stop string is held back until it is known.
 */

/** The stop string and how much of it the end of the text is (Knuth, Morris and Pratt 1977). */
interface Matcher {
  readonly stop: string;
  /** For each number of matched characters, the next smaller number that they match as well. */
  readonly shorter: Int32Array;
  matched: number;
}

/** A text in parts that ends before the first stop string. */
export class StopStrings {
  readonly #matchers: readonly Matcher[];
  #held = '';
  #found: string | null = null;

  /** @param stops well-formed strings that are not empty */
  constructor(stops: readonly string[]) {
    this.#matchers = stops.map((stop) => ({ stop, shorter: shorterMatches(stop), matched: 0 }));
  }

  /** The stop string that has ended the text; null: none yet. */
  get found(): string | null {
    return this.#found;
  }

  /** Adds a part, and returns the text that is certain to come before any stop string; nothing once a stop string was found. */
  push(part: string): string {
    if (this.#found !== null) return '';
    const text = this.#held + part;
    for (let i = this.#held.length; i < text.length; i++) {
      const found = this.#advance(text.charAt(i));
      if (found === null) continue;
      this.#found = found;
      this.#held = '';
      return text.slice(0, i + 1 - found.length);
    }
    const open = this.#matchers.reduce((most, { matched }) => Math.max(most, matched), 0);
    this.#held = text.slice(text.length - open);
    return text.slice(0, text.length - open);
  }

  /** Returns what was held back, at the end of the text. */
  end(): string {
    const rest = this.#held;
    this.#held = '';
    return rest;
  }

  /** Adds a character, and returns the longest stop string that ends with it. */
  #advance(char: string): string | null {
    let longest: string | null = null;
    for (const matcher of this.#matchers) {
      const { stop, shorter } = matcher;
      let { matched } = matcher;
      while (matched > 0 && stop.charAt(matched) !== char) matched = shorter[matched] as number;
      if (stop.charAt(matched) === char) matched++;
      matcher.matched = matched;
      if (matched === stop.length && stop.length > (longest?.length ?? 0)) longest = stop;
    }
    return longest;
  }
}

function shorterMatches(stop: string): Int32Array {
  const shorter = new Int32Array(stop.length + 1);
  for (let length = 2, matched = 0; length <= stop.length; length++) {
    const char = stop.charAt(length - 1);
    while (matched > 0 && stop.charAt(matched) !== char) matched = shorter[matched] as number;
    if (stop.charAt(matched) === char) matched++;
    shorter[length] = matched;
  }
  return shorter;
}
