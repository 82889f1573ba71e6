/**
 * Types of the parts of @huggingface/tokenizers that the tokenizer uses. They are declared here because the package's own
 * declarations import without file extensions, which node16 module resolution reads as `any`.
 */
import * as hf from '@huggingface/tokenizers';

export interface HfModel {
  vocab: string[];
  tokens_to_ids: Map<string, number>;
  /** Converts pre-tokens to tokens. */
  encode(preTokens: string[]): string[];
}

/** A token in the queue of possible merges with the next token; the lowest score is merged first. */
interface HfNode {
  token: string;
  next: HfNode;
  /** Position in the text as a number below 1, which decides between equal scores. */
  bias: number;
  score: number;
}

export interface HfBpe extends HfModel {
  unk_token?: string | null;
  byte_fallback: boolean;
  /** Whether a word of the vocabulary is its token without merges. */
  ignore_merges: boolean;
  end_of_word_suffix?: string | null;
  /** Merges one pre-token. */
  bpe(token: string): string[];
  /** Adds a token to the queue if it may be merged with the next one. */
  add_node(queue: { push(node: HfNode): void }, node: HfNode): void;
}

/** A node of Unigram's trie of tokens. */
interface HfTrieNode {
  is_leaf: boolean;
  readonly children: ReadonlyMap<string, HfTrieNode>;
}

export interface HfUnigram extends HfModel {
  readonly scores: number[];
  readonly trie: { readonly root: HfTrieNode };
}

export interface HfTokenizer {
  model: HfModel;
  readonly decoder: unknown;
  readonly special_tokens: readonly string[];
  decode(
    ids: number[],
    options: { skip_special_tokens: boolean; clean_up_tokenization_spaces: boolean },
  ): string;
  id_to_token(id: number): string | undefined;
}

/** A pre-tokenizer, whose pattern is the translation of one of Oniguruma. */
interface HfSplit {
  readonly pattern: RegExp | null;
}

interface Package {
  Tokenizer: new (tokenizerJson: object, tokenizerConfig: object) => HfTokenizer;
  BPE: new (...args: never[]) => HfBpe;
  Unigram: new (...args: never[]) => HfUnigram;
  SplitPreTokenizer: new (config: object) => HfSplit;
}

export const {
  Tokenizer: HfTokenizer,
  BPE: HfBpe,
  Unigram: HfUnigram,
  SplitPreTokenizer: HfSplit,
} = hf as unknown as Package;
