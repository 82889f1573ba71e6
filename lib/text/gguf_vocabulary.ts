/**
 * A tokenizer.json-like object built from the vocabulary inside a GGUF file (tokenizer.ggml.*): byte-level BPE ("gpt2"),
 * SentencePiece's BPE ("llama") and Unigram ("t5"), WordPiece ("bert"). Other kinds are refused by name, never guessed.
 */
import { UnsupportedError } from '../errors.ts';
import {
  fileHead,
  type GgufMetadata,
  GgufVocabulary,
  incomplete,
  kBpe,
  Metadata,
  postProcessor,
  specialsOf,
  tokenizerConfigOf,
} from './gguf_metadata.ts';
import { sentencePieceBpe, unigram } from './gguf_sentencepiece.ts';
import { wordPiece } from './gguf_wordpiece.ts';
import { ggufPreTokenizer, kBytes } from './pre_tokenizers.ts';
import type { TokenizerParts } from './tokenizer_parts.ts';

export type { GgufMetadata } from './gguf_metadata.ts';

const kKinds: Readonly<Record<string, (vocabulary: GgufVocabulary) => TokenizerParts>> = {
  gpt2: byteLevelBpe,
  llama: sentencePieceBpe,
  t5: unigram,
  bert: wordPiece,
};

/**
 * Builds the tokenizer of a GGUF file.
 * @throws UnsupportedError for a vocabulary of another kind, a pre-tokenizer without a known pattern, scores that are all equal
 * @throws FormatError for missing or inconsistent metadata
 */
export function tokenizerFromGgufMetadata(source: GgufMetadata): TokenizerParts {
  const metadata = new Metadata(source);
  const model = metadata.string('tokenizer.ggml.model');
  if (model === undefined) throw incomplete('tokenizer.ggml.model is missing');
  const build = Object.hasOwn(kKinds, model) ? kKinds[model] : undefined;
  if (build) return build(new GgufVocabulary(metadata));
  throw new UnsupportedError(
    `tokenizer: a GGUF vocabulary of kind '${model}' is not supported (known: ` +
      `${Object.keys(kKinds).join(', ')}); put the model's tokenizer.json beside the file`,
  );
}

function byteLevelBpe(vocabulary: GgufVocabulary): TokenizerParts {
  const { metadata, tokens } = vocabulary;
  const pre = ggufPreTokenizer(metadata.string('tokenizer.ggml.pre') ?? 'default');
  const specials = specialsOf(vocabulary);
  return {
    tokenizerConfig: tokenizerConfigOf(metadata, specials),
    tokenizerJson: {
      ...fileHead(vocabulary, {
        // RoBERTa's mask token strips the space before it.
        strips: (_, id) => ({ lstrip: pre.maskTakesSpace && id === specials.mask_token?.id }),
      }),
      normalizer: null,
      pre_tokenizer: pre.preTokenizer,
      post_processor: postProcessor(vocabulary, specials, pre.addedByDefault),
      decoder: kBytes,
      model: {
        ...kBpe,
        fuse_unk: false,
        byte_fallback: false,
        ignore_merges: pre.ignoreMerges,
        vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
        merges: readMerges(metadata),
      },
    },
  };
}

function readMerges(metadata: Metadata): [string, string][] {
  const merges = metadata.strings('tokenizer.ggml.merges');
  if (!merges) throw incomplete('tokenizer.ggml.merges is missing');
  return merges.map((merge, i) => {
    const space = merge.indexOf(' ', 1);
    if (space < 0) {
      throw incomplete(`tokenizer.ggml.merges[${i}] must be two tokens, got '${merge}'`);
    }
    return [merge.slice(0, space), merge.slice(space + 1)];
  });
}
