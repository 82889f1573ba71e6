/**
 * The merges of SentencePiece's BPE: among all neighbours whose joined text is a token, those that make the token with the highest
 * score are merged first, the leftmost of equals first, until none are left. A tokenizer.json has a list of pairs instead, which is
 * made only when the tokenizer is saved.
 */
import { UnsupportedError } from '../errors.ts';
import { type GgufVocabulary, TokenType } from './gguf_metadata.ts';

/** Merges that are given by the ranks of the tokens that they make. */
export class GreedyMerges {
  /** Rank of each token that a merge may make, 0 for the highest score; equal scores have equal ranks. */
  constructor(readonly ranks: ReadonlyMap<string, number>) {}

  /**
   * The list of pairs for tokenizer.json: tokens in the order of their ranks, and for each token all pairs that make it. The list
   * cannot express equal ranks, so pairs with a longer left part come first, as in Hugging Face's conversions.
   * @param known whether a single character is a token; other tools refuse a pair of one that is not
   */
  pairs(known: (char: string) => boolean): [string, string][] {
    const isPart = (text: string) => (isOneCharacter(text) ? known(text) : this.ranks.has(text));
    const pairs: [string, string][] = [];
    for (const token of this.ranks.keys()) {
      for (let at = token.length - 1; at > 0; at--) {
        if (isLowSurrogate(token.charCodeAt(at))) continue;
        const [left, right] = [token.slice(0, at), token.slice(at)];
        if (isPart(left) && isPart(right)) pairs.push([left, right]);
      }
    }
    return pairs;
  }
}

/**
 * Reads the merges from the scores of a GGUF vocabulary. Control, unknown and byte tokens are never made by merges.
 * @throws UnsupportedError if all scores are equal, as converters without scores write them
 */
export function greedyMerges(vocabulary: GgufVocabulary): GreedyMerges {
  const { tokens } = vocabulary;
  const scores = vocabulary.scores();
  const score = (id: number) => scores[id] as number;
  const kinds: number[] = [TokenType.normal, TokenType.userDefined, TokenType.unused];
  const joined = [...tokens.keys()].filter(
    (id) => kinds.includes(vocabulary.type(id)) && !isOneCharacter(tokens[id] as string),
  );
  const normal = joined.filter((id) => vocabulary.type(id) === TokenType.normal);
  if (normal.length > 1 && normal.every((id) => score(id) === score(normal[0] as number))) {
    throw new UnsupportedError(
      `tokenizer: the GGUF's tokens all have the score ${score(normal[0] as number)}, which does not give an order of ` +
        "merges; put the model's tokenizer.json beside the file",
    );
  }
  joined.sort((a, b) => score(b) - score(a) || a - b);
  const ranks = new Map<string, number>();
  let rank = -1;
  joined.forEach((id, i) => {
    if (i === 0 || score(id) !== score(joined[i - 1] as number)) rank++;
    ranks.set(tokens[id] as string, rank);
  });
  return new GreedyMerges(ranks);
}

function isOneCharacter(text: string): boolean {
  return text.length <= 1 || (text.length === 2 && (text.codePointAt(0) as number) > 0xffff);
}

function isLowSurrogate(unit: number): boolean {
  return unit >= 0xdc00 && unit < 0xe000;
}
