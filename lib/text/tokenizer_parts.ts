/** The parts that a tokenizer is made of, read from a Hugging Face folder or built from a GGUF file's vocabulary. */
import type { GreedyMerges } from './spm_merges.ts';

/** The contents of the two files of a Hugging Face folder. */
export interface TokenizerParts {
  tokenizerJson: Record<string, unknown>;
  tokenizerConfig: Record<string, unknown>;
  /** Merges of a SentencePiece BPE, whose list `merges` in tokenizerJson is empty. */
  merges?: GreedyMerges;
}

/** Everything that the ids of a text depend on. */
export interface TokenizerOptions extends TokenizerParts {
  /** Treatment of a byte without a token: it is dropped before merging (Hugging Face), or merges stop at it (llama.cpp). */
  missingBytes: 'join' | 'separate';
}

/** The options of a tokenizer in a form that can be sent to another process. */
export interface TokenizerSetup extends Omit<TokenizerOptions, 'merges'> {
  readonly ranks: ReadonlyMap<string, number> | null;
}

/** A text to encode, without special tokens around it. */
export interface EncodeRequest {
  readonly text: string;
  /** Whether text such as `<|im_end|>` becomes the special token. */
  readonly parseSpecial: boolean;
}
