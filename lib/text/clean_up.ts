/**
 * The removal of spaces before punctuation, for tokenizers that ask for it (`clean_up_tokenization_spaces`). It works on whole texts
 * and on streams.
 */

/** Replacements of transformers' clean_up_tokenization(), applied one after the other. */
const kReplacements: readonly (readonly [string, string])[] = [
  [' .', '.'],
  [' ?', '?'],
  [' !', '!'],
  [' ,', ','],
  [" ' ", "'"],
  [" n't", "n't"],
  [" 'm", "'m"],
  [" 's", "'s"],
  [" 've", "'ve"],
  [" 're", "'re"],
];

/** Removes the spaces of a whole text. */
export function cleanUpSpaces(text: string): string {
  let cleaned = text;
  for (const [spaced, plain] of kReplacements) cleaned = cleaned.replaceAll(spaced, plain);
  return cleaned;
}

/** The texts to replace: those above, and those of them whose quote stands between spaces, which are removed first. */
const kReplaced: readonly string[] = kReplacements.flatMap(([spaced]) =>
  spaced === " ' " || !spaced.includes("'") ? [spaced] : [spaced, spaced.replace("'", " ' ")],
);

/**
 * Texts that what follows may turn into one that is replaced, the longest first. A quote between spaces is one of them, since it is not
 * replaced before a full stop.
 */
const kOpen: readonly string[] = [...new Set([...kReplaced.flatMap(beginningsOf), " ' "])].sort(
  (a, b) => b.length - a.length,
);

function beginningsOf(text: string): string[] {
  return Array.from({ length: text.length - 1 }, (_, i) => text.slice(0, i + 1));
}

/** Removes the spaces of a text that arrives in parts: all results together are cleanUpSpaces() of all parts together. */
export class CleanUpStream {
  #held = '';

  /** Adds a part, and returns what later parts cannot change. */
  push(part: string): string {
    const text = this.#held + part;
    const end = settledLength(text);
    this.#held = text.slice(end);
    return cleanUpSpaces(text.slice(0, end));
  }

  /** Returns the rest at the end of the text. */
  end(): string {
    const rest = cleanUpSpaces(this.#held);
    this.#held = '';
    return rest;
  }
}

/** The length of the beginning of a text that is replaced in the same way whatever follows. */
function settledLength(text: string): number {
  const open = kOpen.find((one) => text.endsWith(one)) ?? '';
  let end = text.length - open.length;
  // A quote between spaces must not be cut at its second space.
  while (open !== '' && end >= 2 && text.startsWith(" ' ", end - 2)) end -= 2;
  return end;
}
