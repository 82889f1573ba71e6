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

/** Where two neighbours wait to be joined, the one of the least score first. */
interface HfNode {
  token: string;
  next: HfNode;
  /** Place in the text, below 1. */
  bias: number;
  score: number;
}

export interface HfBpe extends HfModel {
  unk_token?: string | null;
  byte_fallback: boolean;
  end_of_word_suffix?: string | null;
  /** Merges one pre-token. */
  bpe(token: string): string[];
  /** Puts a token and the next one into the queue, if they may be joined. */
  add_node(queue: { push(node: HfNode): void }, node: HfNode): void;
}

/** A node of the trie that Unigram finds its pieces in. */
interface HfTrieNode {
  is_leaf: boolean;
  readonly children: ReadonlyMap<string, HfTrieNode>;
}

export interface HfUnigram extends HfModel {
  readonly trie: { readonly root: HfTrieNode };
}

export interface HfTokenizer {
  model: HfModel;
  readonly normalizer: unknown;
  readonly decoder: unknown;
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
  Unigram: new (...args: never[]) => HfUnigram;
}

export const { Tokenizer: HfTokenizer, BPE: HfBpe, Unigram: HfUnigram } = hf as unknown as Package;
