/**
 * The part of @huggingface/tokenizers that the tokenizer uses, typed here: the package's own declarations import without
 * file extensions, which node16 module resolution reads as `any`.
 */
import * as hf from '@huggingface/tokenizers';

export interface HfModel {
  vocab: string[];
  tokens_to_ids: Map<string, number>;
  /** Pre-tokens -> tokens. */
  encode(pieces: string[]): string[];
}

export interface HfBpe extends HfModel {
  unk_token?: string | null;
  byte_fallback: boolean;
  end_of_word_suffix?: string | null;
  /** Merges one pre-token. */
  bpe(token: string): string[];
}

export interface HfTokenizer {
  model: HfModel;
  readonly normalizer: unknown;
  encode(text: string, options: { add_special_tokens: boolean }): { ids: number[] };
  decode(
    ids: number[],
    options: { skip_special_tokens: boolean; clean_up_tokenization_spaces: boolean },
  ): string;
  token_to_id(token: string): number | undefined;
  id_to_token(id: number): string | undefined;
}

interface Package {
  Tokenizer: new (tokenizerJson: object, tokenizerConfig: object) => HfTokenizer;
  BPE: new (...args: never[]) => HfBpe;
}

export const { Tokenizer: HfTokenizer, BPE: HfBpe } = hf as unknown as Package;
