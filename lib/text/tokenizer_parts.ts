/** The parts that a tokenizer is made of, read from a Hugging Face folder or built from a GGUF file's vocabulary. */
import type { GreedyMerges } from './spm_merges.ts';

/** The contents of the two files of a Hugging Face folder. */
export interface TokenizerParts {
  tokenizerJson: Record<string, unknown>;
  tokenizerConfig: Record<string, unknown>;
  /** Merges of a SentencePiece BPE, whose list `merges` in tokenizerJson is empty. */
  merges?: GreedyMerges;
}
