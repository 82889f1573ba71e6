/**
 * SentencePiece in plain loops, as a reference for tests: BPE by the scores of pieces, and the best segmentation of Unigram.
 * Spaces in texts are already U+2581.
 */

/** An entry of a vocabulary: a token (SentencePiece's "piece"), its score, and its type as numbered in GGUF files. */
export interface Piece {
  token: string;
  score: number;
  type: number;
}

const byteToken = (byte: number): string =>
  `<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`;

export function bytePieces(): Piece[] {
  return Array.from({ length: 256 }, (_, byte) => ({ token: byteToken(byte), score: 0, type: 6 }));
}

/**
 * Repeatedly joins the two neighbours whose joined text has the best score, the leftmost of equals, while
 * one is in the vocabulary.
 */
export function greedyPieces(
  text: string,
  scoreOf: (token: string) => number | undefined,
): string[] {
  const symbols = Array.from(text);
  for (;;) {
    let [best, bestScore] = [-1, Number.NEGATIVE_INFINITY];
    for (let i = 0; i + 1 < symbols.length; i++) {
      const score = scoreOf(`${symbols[i]}${symbols[i + 1]}`);
      if (score !== undefined && score > bestScore) [best, bestScore] = [i, score];
    }
    if (best < 0) return symbols;
    symbols.splice(best, 2, `${symbols[best]}${symbols[best + 1]}`);
  }
}

/** The ids of pieces; a character that is not in the vocabulary becomes the ids of its bytes. */
export function idsWithBytes(symbols: readonly string[], tokens: readonly string[]): number[] {
  const ids = new Map(tokens.map((token, id) => [token, id]));
  return symbols.flatMap((symbol) => {
    const id = ids.get(symbol);
    if (id !== undefined) return [id];
    return Array.from(Buffer.from(symbol), (byte) => ids.get(byteToken(byte)) as number);
  });
}

/**
 * The segmentation with the highest sum of scores, by dynamic programming. A character that is not in the vocabulary has a score
 * 10 below the worst normal piece, and adjacent ones are joined.
 */
export function viterbi(text: string, pieces: readonly Piece[], unknown: number): number[] {
  const chars = Array.from(text);
  const penalty = Math.min(...pieces.filter((p) => p.type === 1).map((p) => p.score)) - 10;
  const best = [{ score: 0, from: -1, id: -1 }];
  for (let end = 1; end <= chars.length; end++) {
    let found = { score: Number.NEGATIVE_INFINITY, from: -1, id: -1 };
    for (let from = 0; from < end; from++) {
      const token = chars.slice(from, end).join('');
      const id = pieces.findIndex((p) => p.token === token && p.type === 1);
      if (id < 0 && end - from > 1) continue;
      const score =
        (best[from] as { score: number }).score + (id < 0 ? penalty : (pieces[id] as Piece).score);
      if (score > found.score + 1e-9) found = { score, from, id: id < 0 ? unknown : id };
    }
    best.push(found);
  }
  const ids: number[] = [];
  for (let at = chars.length; at > 0; ) {
    const { from, id } = best[at] as { from: number; id: number };
    if (!(id === unknown && ids[0] === unknown)) ids.unshift(id);
    at = from;
  }
  return ids;
}

/**
 * Learns a BPE vocabulary from a text, most frequent pair first. As in a trained model, every piece is the
 * concatenation of two others.
 * @returns the merges in their order, and the characters of the text
 */
export function learnMerges(
  text: string,
  count: number,
): { merges: [string, string][]; chars: string[] } {
  const words = text.split(/(?<=[^▁])(?=▁)/).map((word) => Array.from(word));
  const merges: [string, string][] = [];
  while (merges.length < count) {
    const counts = new Map<string, number>();
    for (const word of words) {
      for (let i = 0; i + 1 < word.length; i++) {
        const pair = `${word[i]}\0${word[i + 1]}`;
        counts.set(pair, (counts.get(pair) ?? 0) + 1);
      }
    }
    const [pair] = [...counts].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1))[0] ?? [];
    if (pair === undefined) break;
    const [left, right] = pair.split('\0') as [string, string];
    merges.push([left, right]);
    for (const word of words) {
      for (let i = 0; i + 1 < word.length; i++) {
        if (word[i] === left && word[i + 1] === right) word.splice(i, 2, left + right);
      }
    }
  }
  return { merges, chars: [...new Set(text)] };
}

/** A text to learn from, with words, runs of spaces, digits, umlauts and ideographs. */
export const kSample = [
  'the cat sat on the mat and the rat sat on the cat',
  'a  b   c    d     e      the       end        of         it',
  'naïve façade über straße — 你好世界 世界 你好 123 1234 12345 aaaa aaaaaa abab ababab',
  'banana bandana cabana, the theme then there; thistle this that those these',
].join(' ');
