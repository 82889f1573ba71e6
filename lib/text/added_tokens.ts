/**
 * The added tokens of a tokenizer.json, which are found in a text before it is split into words, as Hugging Face's tokenizers (Rust)
 * find them. @huggingface/tokenizers 0.2 ignores `single_word`, loses an added token of white space beside one that strips it, and takes
 * the tokens of normalized and of original text in one pass.
 */
import { kWordCharacters } from './regexes.ts';
import type { AddedToken } from './tokenizer_checks.ts';

/** A part of a text: that of an added token with its id, or what is between them. */
export interface Section {
  readonly text: string;
  /** Where it begins in the text. */
  readonly start: number;
  readonly id: number | null;
}

interface Node {
  readonly next: Map<string, Node>;
  token: AddedToken | null;
}

const kWordAtEnd = new RegExp(`[${kWordCharacters}]$`, 'u');
const kWordAtStart = new RegExp(`^[${kWordCharacters}]`, 'u');
const kSpace = /\p{White_Space}/u;

/** Added tokens by their texts. */
export class AddedTokens {
  readonly #root: Node = { next: new Map(), token: null };

  /** @param texts by which the tokens are found; of two with the same, the first counts */
  constructor(tokens: Iterable<readonly [text: string, token: AddedToken]>) {
    for (const [text, token] of tokens) {
      if (text === '') continue;
      let node = this.#root;
      for (let i = 0; i < text.length; i++) {
        const char = text.charAt(i);
        const next = node.next.get(char) ?? { next: new Map(), token: null };
        node.next.set(char, next);
        node = next;
      }
      node.token ??= token;
    }
  }

  /** Splits a text at the added tokens, of which the leftmost, and of those the longest one counts. */
  sections(text: string): readonly Section[] {
    if (text === '') return [];
    if (this.#root.next.size === 0) return [{ text, start: 0, id: null }];
    const sections: Section[] = [];
    let done = 0;
    for (let i = 0; i < text.length; ) {
      const found = this.#longestAt(text, i);
      if (found === null) {
        i++;
        continue;
      }
      const { token, end } = found;
      if (token.single_word !== true || isAlone(text, i, end)) {
        const start = token.lstrip === true ? Math.max(spacesBefore(text, i), done) : i;
        const stop = token.rstrip === true ? spacesAfter(text, end) : end;
        if (done < start) sections.push({ text: text.slice(done, start), start: done, id: null });
        sections.push({ text: text.slice(start, stop), start, id: token.id });
        // A token of white space that the one before it has stripped is found nevertheless.
        done = stop;
      }
      i = end;
    }
    if (done < text.length) sections.push({ text: text.slice(done), start: done, id: null });
    return sections;
  }

  #longestAt(text: string, start: number): { token: AddedToken; end: number } | null {
    let found: { token: AddedToken; end: number } | null = null;
    let node: Node | undefined = this.#root;
    for (let i = start; i < text.length; ) {
      node = node.next.get(text.charAt(i++));
      if (node === undefined) break;
      if (node.token !== null) found = { token: node.token, end: i };
    }
    return found;
  }
}

/** Whether neither a word ends before a token nor one begins behind it. */
function isAlone(text: string, start: number, end: number): boolean {
  const [before, after] = [text.slice(Math.max(0, start - 2), start), text.slice(end, end + 2)];
  return !kWordAtEnd.test(before) && !kWordAtStart.test(after);
}

/** Where the white space before a place begins. */
function spacesBefore(text: string, place: number): number {
  let start = place;
  while (start > 0 && kSpace.test(text.charAt(start - 1))) start--;
  return start;
}

/** Where the white space behind a place ends. */
function spacesAfter(text: string, place: number): number {
  let end = place;
  while (end < text.length && kSpace.test(text.charAt(end))) end++;
  return end;
}
