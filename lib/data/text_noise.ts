/** Noise in texts: typos, words that are missing, and words of a short span in another order. */
import type { TextNoiseKind } from './corruption_options.ts';
import { type RandomWords, randomBelow, randomOrder } from './philox.ts';

/** Kinds of typos. */
const kTypos = ['swap', 'omit', 'double'] as const;
/** Number of words of a span that is put into another order. */
const kSpan = 4;

/** A text with noise, and the number of words that it concerns. */
export interface NoisyText {
  readonly text: string;
  readonly words: number;
}

/**
 * Changes words of a text, each with the same probability and by one of the kinds. The white space between words stays, and a text never
 * becomes empty.
 */
export function noisyText(
  text: string,
  { share, kinds, next }: { share: number; kinds: readonly TextNoiseKind[]; next: RandomWords },
): NoisyText {
  // Words are at even places and the white space between them at odd ones.
  const parts = text.split(/(\s+)/);
  const places = [...parts.keys()].filter((i) => i % 2 === 0 && parts[i] !== '');
  const dropped = new Set<number>();
  let words = 0;
  places.forEach((place, n) => {
    if (next() / 2 ** 32 >= share) return;
    const kind = kinds[randomBelow(next, kinds.length)] as TextNoiseKind;
    if (kind === 'typos') parts[place] = typo(parts[place] as string, next);
    else if (kind === 'shuffle') reorder(parts, spanAt(places, n), next);
    else if (dropped.size + 1 < places.length) dropped.add(place);
    else return;
    words++;
  });
  const kept = parts.filter((_, i) => !dropped.has(i) && !(i % 2 === 1 && dropped.has(i - 1)));
  return { text: kept.join(''), words };
}

/** The places of a span of words that begins with the n-th, or ends with the last. */
function spanAt(places: readonly number[], n: number): readonly number[] {
  const start = Math.max(0, Math.min(n, places.length - kSpan));
  return places.slice(start, start + kSpan);
}

/** Puts the words at some places into another order, if there are several. */
function reorder(parts: string[], span: readonly number[], next: RandomWords): void {
  const before = span.map((place) => parts[place] as string);
  const order = [...randomOrder(span.length, next)];
  // An order that changes nothing becomes a rotation.
  const same = order.every((from, to) => before[from] === before[to]);
  const chosen = same ? order.map((_, i) => (i + 1) % span.length) : order;
  span.forEach((place, i) => {
    parts[place] = before[chosen[i] as number] as string;
  });
}

/** A word with two neighbouring letters swapped, a letter left out, or one doubled. It is never the same word. */
function typo(word: string, next: RandomWords): string {
  const letters = [...word];
  const kind = letters.length < 2 ? 'double' : kTypos[randomBelow(next, kTypos.length)];
  const at = randomBelow(next, kind === 'swap' ? letters.length - 1 : letters.length);
  const [one, two] = [letters[at] as string, letters[at + 1]];
  if (kind === 'omit') letters.splice(at, 1);
  else if (kind === 'swap' && one !== two) letters.splice(at, 2, two as string, one);
  else letters.splice(at, 0, one);
  return letters.join('');
}
