/** The steps from a text to ids, without special tokens around it, in the order of Hugging Face's tokenizers (Rust). */
import { AddedTokens } from './added_tokens.ts';
import type { WordIds } from './models.ts';
import type { Normalizer } from './normalizers.ts';
import type { compilePreTokenizer, Part } from './splits.ts';
import type { AddedToken } from './tokenizer_checks.ts';

/** The steps of a tokenizer.json. */
export interface EncoderSteps {
  readonly normalize: Normalizer;
  readonly split: ReturnType<typeof compilePreTokenizer>;
  readonly wordIds: WordIds;
}

/** Texts to ids. */
export class TextEncoding {
  /** Tokens that are found in the text as it is, and those that are found in normalized text. */
  readonly #original: AddedTokens;
  readonly #normalized: AddedTokens;

  constructor(
    private readonly steps: EncoderSteps,
    tokens: readonly AddedToken[],
  ) {
    const isNormalized = ({ normalized, special }: AddedToken) => normalized ?? !special;
    this.#original = new AddedTokens(
      tokens.filter((token) => !isNormalized(token)).map((token) => [token.content, token]),
    );
    this.#normalized = new AddedTokens(
      tokens.filter(isNormalized).map((token) => [steps.normalize(token.content), token]),
    );
  }

  /** The ids of a text; an id is undefined where a character has no token and there is no unknown token. */
  ids(text: string): (number | undefined)[] {
    const ids: (number | undefined)[] = [];
    const { normalize, split, wordIds } = this.steps;
    for (const outer of this.#original.sections(text)) {
      if (outer.id !== null) {
        ids.push(outer.id);
        continue;
      }
      const isFirst = outer.start === 0 && !losesStart(normalize, outer.text);
      for (const inner of this.#normalized.sections(normalize(outer.text))) {
        if (inner.id !== null) {
          ids.push(inner.id);
          continue;
        }
        const part: Part = { text: inner.text, isFirst: isFirst && inner.start === 0 };
        for (const word of split(part)) for (const id of wordIds(word.text)) ids.push(id);
      }
    }
    return ids;
  }
}

/** Whether normalization drops the first character of a text, so that what is left begins behind its start. */
function losesStart(normalize: Normalizer, text: string): boolean {
  return text !== '' && normalize(String.fromCodePoint(text.codePointAt(0) as number)) === '';
}
