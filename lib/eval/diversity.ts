/**
 * Measures of how much generated texts differ, by which the collapse of a model shows: distinct-n (Li et al. 2016), self-BLEU (Zhu et al.
 * 2018) and the entropy of the tokens. Tokens are words or ids.
 */
import { checkKeys } from '../options/call.ts';

/** A text as its tokens. */
export type TokenizedText = readonly (string | number)[];

/** The words of a text: what stands between blanks. */
export function wordsOf(text: string): readonly string[] {
  return text.split(/\s+/).filter((word) => word !== '');
}

/** Texts as numbers of tokens, equal numbers for equal tokens, so that n-grams can be keys. */
function numbered(texts: readonly TokenizedText[]): readonly (readonly number[])[] {
  const numbers = new Map<string | number, number>();
  return texts.map((text) =>
    text.map((token) => {
      const known = numbers.get(token) ?? numbers.size;
      numbers.set(token, known);
      return known;
    }),
  );
}

/** The n-grams of a text and how often each occurs. */
function ngrams(text: readonly number[], n: number): Map<string, number> {
  const counts = new Map<string, number>();
  for (let from = 0; from + n <= text.length; from++) {
    const key = text.slice(from, from + n).join(' ');
    counts.set(key, (counts.get(key) ?? 0) + 1);
  }
  return counts;
}

/** Different n-grams among all n-grams of the texts together; 0 where there is none. */
export function distinctN(texts: readonly TokenizedText[], n: number): number {
  const found = new Set<string>();
  let all = 0;
  for (const text of numbered(texts)) {
    for (const [key, count] of ngrams(text, n)) {
      found.add(key);
      all += count;
    }
  }
  return all === 0 ? 0 : found.size / all;
}

/** The mean over texts of their own distinct-n; a text without an n-gram counts 0. */
export function meanDistinctN(texts: readonly TokenizedText[], n: number): number {
  return texts.reduce((sum, text) => sum + distinctN([text], n), 0) / texts.length;
}

/** The entropy of the tokens of all texts together. */
export interface TokenEntropy {
  /** In nats. */
  readonly entropy: number;
  /** Divided by the logarithm of the number of different tokens, which is its largest value; 0 where there is only one. */
  readonly normalized: number;
}

/** Computes the entropy of the distribution of tokens in the texts together. */
export function tokenEntropy(texts: readonly TokenizedText[]): TokenEntropy {
  const counts = [...ngrams(numbered(texts).flat(), 1).values()];
  const all = counts.reduce((sum, count) => sum + count, 0);
  const entropy = counts.reduce((sum, count) => sum - (count / all) * Math.log(count / all), 0);
  return { entropy, normalized: counts.length < 2 ? 0 : entropy / Math.log(counts.length) };
}

/** Options of {@link selfBleu}. */
export interface SelfBleuOptions {
  /**
   * Whether an n-gram count of 0 becomes 0.1 (method 1 of Chen and Cherry 2014), unless no token is shared at all. Without it, such a
   * text has 0. Default true.
   */
  readonly smoothing?: boolean;
}

const kOrders = [1, 2, 3, 4];
const kEpsilon = 0.1;

/** The two largest counts of an n-gram in one text, and the text that has the larger, so that it can be left out. */
interface LargestCounts {
  owner: number;
  first: number;
  second: number;
}

/**
 * BLEU-4 of each text against all others as references, with equal weights, counts clipped by the largest one of a reference, and the
 * brevity penalty of the reference whose length is closest (the shorter one of two).
 * @returns a value for each text; 0 where there is no other text
 */
export function selfBleuOfEach(
  texts: readonly TokenizedText[],
  options: SelfBleuOptions = {},
): readonly number[] {
  const { smoothing = true } = checkKeys('selfBleu', options, 'smoothing');
  const ids = numbered(texts);
  const precisions = kOrders.map((n) => clippedPrecisions(ids, n));
  const penalties = brevityPenalties(ids.map(({ length }) => length));
  return ids.map((_, i) => {
    let logarithm = 0;
    for (const [order, values] of precisions.entries()) {
      const { clipped, all } = values[i] as { clipped: number; all: number };
      if (clipped === 0 && (order === 0 || !smoothing)) return 0;
      logarithm +=
        Math.log((clipped === 0 ? kEpsilon : clipped) / Math.max(1, all)) / kOrders.length;
    }
    return (penalties[i] as number) * Math.exp(logarithm);
  });
}

/** The mean over texts of {@link selfBleuOfEach}: 1 where all texts are equal; null without texts. */
export function selfBleu(
  texts: readonly TokenizedText[],
  options: SelfBleuOptions = {},
): number | null {
  const each = selfBleuOfEach(texts, options);
  return each.length === 0 ? null : each.reduce((sum, value) => sum + value, 0) / each.length;
}

/** For each text the n-grams that another text has, too, and all of them. */
function clippedPrecisions(
  texts: readonly (readonly number[])[],
  n: number,
): readonly { readonly clipped: number; readonly all: number }[] {
  const counts = texts.map((text) => ngrams(text, n));
  const largest = new Map<string, LargestCounts>();
  counts.forEach((own, owner) => {
    for (const [key, count] of own) {
      const found = largest.get(key);
      if (found === undefined) largest.set(key, { owner, first: count, second: 0 });
      else if (count > found.first) {
        largest.set(key, { owner, first: count, second: found.first });
      } else found.second = Math.max(found.second, count);
    }
  });
  return counts.map((own, i) => {
    let [clipped, all] = [0, 0];
    for (const [key, count] of own) {
      const { owner, first, second } = largest.get(key) as LargestCounts;
      clipped += Math.min(count, owner === i ? second : first);
      all += count;
    }
    return { clipped, all };
  });
}

/** The brevity penalty of each text against the others. */
function brevityPenalties(lengths: readonly number[]): readonly number[] {
  const texts = new Map<number, number>();
  for (const length of lengths) texts.set(length, (texts.get(length) ?? 0) + 1);
  const sorted = [...texts.keys()].sort((a, b) => a - b);
  const penalty = (length: number): number => {
    const others = sorted.filter((other) => other !== length || (texts.get(other) as number) > 1);
    if (others.length === 0 || length === 0) return 0;
    const closest = others.reduce((best, other) =>
      Math.abs(other - length) < Math.abs(best - length) ? other : best,
    );
    return length > closest ? 1 : Math.exp(1 - closest / length);
  };
  const found = new Map(sorted.map((length) => [length, penalty(length)]));
  return lengths.map((length) => found.get(length) as number);
}
