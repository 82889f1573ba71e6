/**
 * SentencePiece vocabularies of GGUF files: BPE ("llama": Llama 2, Mistral, Gemma, Phi-3) and Unigram ("t5"). The keys have the
 * meanings and defaults of llama.cpp's llama-vocab.cpp. Spaces are written as U+2581.
 */
import { UnsupportedError } from '../errors.ts';
import { shown } from '../shown.ts';
import {
  fileHead,
  type GgufVocabulary,
  incomplete,
  kBpe,
  postProcessor,
  type Role,
  type Special,
  specialsOf,
  TokenType,
  tokenizerConfigOf,
} from './gguf_metadata.ts';
import { kMarkedWords, split } from './pre_tokenizers.ts';
import { type GreedyMerges, greedyMerges } from './spm_merges.ts';
import type { TokenizerParts } from './tokenizer_parts.ts';

type Json = Record<string, unknown>;

const kMark = '\u2581';
const sequence = (...normalizers: Json[]): Json => ({ type: 'Sequence', normalizers });
const replace = (pattern: { String: string } | { Regex: string }, content: string): Json => ({
  type: 'Replace',
  pattern,
  content,
});
const prepend = (text: string): Json => ({ type: 'Prepend', prepend: text });

/** The tokenizer of a file with tokenizer.ggml.model = "llama". */
export function sentencePieceBpe(vocabulary: GgufVocabulary): TokenizerParts {
  const { metadata, tokens } = vocabulary;
  refuseDuplicates(tokens);
  const specials = specialsOf(vocabulary, { bos_token: 1, eos_token: 2, unk_token: 0 });
  const prefix = metadata.boolean('tokenizer.ggml.add_space_prefix') ?? true;
  const merges = greedyMerges(vocabulary);
  const marked = replace({ String: ' ' }, kMark);
  return {
    tokenizerConfig: tokenizerConfigOf(metadata, specials),
    tokenizerJson: {
      ...sharedParts(vocabulary, specials, { bos: true, eos: false, sep: false }),
      normalizer: prefix ? sequence(prepend(kMark), marked) : marked,
      pre_tokenizer: wordByWord(merges) ? split(kMarkedWords) : null,
      decoder: decoder(prefix),
      model: {
        ...kBpe,
        unk_token: vocabulary.required('unk_token', 0).token,
        fuse_unk: true,
        byte_fallback: hasBytes(vocabulary),
        ignore_merges: false,
        vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
        merges: [],
      },
    },
    merges,
  };
}

/** Whether no merge extends beyond a word, so that the tokens of each word can be cached. */
function wordByWord({ ranks }: GreedyMerges): boolean {
  for (const token of ranks.keys()) if (/[^\u2581]\u2581/.test(token)) return false;
  return true;
}

/** The tokenizer of a file with tokenizer.ggml.model = "t5". */
export function unigram(vocabulary: GgufVocabulary): TokenizerParts {
  const { metadata, tokens } = vocabulary;
  refuseDuplicates(tokens);
  const specials = specialsOf(vocabulary, { eos_token: 1, unk_token: 2, pad_token: 0 });
  const collapse = metadata.boolean('tokenizer.ggml.remove_extra_whitespaces') ?? false;
  // A file that collapses spaces has one before every word, the first one too.
  const prefix = (metadata.boolean('tokenizer.ggml.add_space_prefix') ?? false) || collapse;
  const normalizers = [
    ...charsmapNormalizer(vocabulary),
    ...(prefix ? [prepend(' ')] : []),
    ...(collapse ? [replace({ Regex: ' {2,}' }, ' '), replace({ Regex: ' \\z' }, '')] : []),
  ];
  return {
    tokenizerConfig: tokenizerConfigOf(metadata, specials),
    tokenizerJson: {
      ...sharedParts(vocabulary, specials, { bos: false, eos: true, sep: false }),
      normalizer: normalizers.length === 0 ? null : sequence(...normalizers),
      pre_tokenizer: {
        type: 'Metaspace',
        replacement: kMark,
        prepend_scheme: 'never',
        split: wordsStandAlone(tokens),
      },
      decoder: decoder(prefix),
      model: {
        type: 'Unigram',
        unk_id: vocabulary.required('unk_token', 2).id,
        vocab: scoredVocabulary(vocabulary),
        byte_fallback: hasBytes(vocabulary),
      },
    },
  };
}

/** Special tokens of Phi-3 that keep the white space after them; all others strip it, which the file does not state. */
const kPhi3Plain = ['<unk>', '<s>', '<|endoftext|>'];

/** Parts of tokenizer.json that SentencePiece BPE and Unigram share. */
function sharedParts(
  vocabulary: GgufVocabulary,
  specials: Partial<Record<Role, Special | null>>,
  addedByDefault: { bos: boolean; eos: boolean; sep: boolean },
): Json {
  const { metadata } = vocabulary;
  const phi3 =
    metadata.string('general.architecture') === 'phi3' ||
    /phi-?3/i.test(metadata.string('general.name') ?? '');
  return {
    ...fileHead(vocabulary, {
      strips: (token) => ({ rstrip: phi3 && !kPhi3Plain.includes(token) }),
    }),
    post_processor: postProcessor(vocabulary, specials, addedByDefault),
  };
}

/** Decoder that turns U+2581 into spaces and byte tokens into bytes, and removes the space that was prepended. */
function decoder(prefix: boolean): Json {
  return {
    type: 'Sequence',
    decoders: [
      replace({ String: kMark }, ' '),
      { type: 'ByteFallback' },
      { type: 'Fuse' },
      ...(prefix ? [{ type: 'Strip', content: ' ', start: 1, stop: 0 }] : []),
    ],
  };
}

function hasBytes(vocabulary: GgufVocabulary): boolean {
  return vocabulary.tokens.some((_, id) => vocabulary.type(id) === TokenType.byte);
}

/** Published maps have 300 KB. */
const kMaxCharsmap = 2 ** 24;

/** The normalizer of the compiled character map, whose bytes may be signed or unsigned in the file. */
function charsmapNormalizer({ metadata }: GgufVocabulary): Json[] {
  const bytes = metadata.numbers('tokenizer.ggml.precompiled_charsmap');
  if (bytes === undefined || bytes.length === 0) return [];
  if (bytes.length > kMaxCharsmap) {
    throw incomplete(
      `tokenizer.ggml.precompiled_charsmap has ${bytes.length} bytes, more than the ${kMaxCharsmap} that are read`,
    );
  }
  const base64 = Buffer.from(Uint8Array.from(bytes)).toString('base64');
  return [{ type: 'Precompiled', precompiled_charsmap: base64 }];
}

/** Whether words can be tokenized separately: U+2581 is a token, and occurs in other tokens only at their start. */
function wordsStandAlone(tokens: readonly string[]): boolean {
  return tokens.includes(kMark) && !tokens.some((token) => token.indexOf(kMark, 1) > 0);
}

/**
 * The tokens with their log-probabilities. Unigram gives an unknown character 10 less than the lowest of them, so the lowest must
 * be that of a normal token: converters give padding tokens a constant far below.
 */
function scoredVocabulary(vocabulary: GgufVocabulary): [string, number][] {
  const scores = vocabulary.scores();
  let lowest = Number.POSITIVE_INFINITY;
  vocabulary.tokens.forEach((_, id) => {
    if (vocabulary.type(id) !== TokenType.normal) return;
    lowest = Math.min(lowest, scores[id] as number);
  });
  if (lowest === Number.POSITIVE_INFINITY) throw incomplete('the vocabulary has no normal token');
  return vocabulary.tokens.map((token, id) => {
    const score = vocabulary.type(id) === TokenType.userDefined ? 0 : (scores[id] as number);
    return [token, Math.max(score, lowest)];
  });
}

function refuseDuplicates(tokens: readonly string[]): void {
  const ids = new Map<string, number>();
  tokens.forEach((token, id) => {
    const first = ids.get(token);
    if (first !== undefined) {
      throw new UnsupportedError(
        `tokenizer: the GGUF's token ${shown(token)} has the ids ${first} and ${id}; put the model's ` +
          'tokenizer.json beside the file',
      );
    }
    ids.set(token, id);
  });
}
