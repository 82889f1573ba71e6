/**
 * WordPiece vocabularies of GGUF files (tokenizer.ggml.model = "bert"). llama.cpp's converter puts U+2581 before tokens that begin
 * a word and removes the ## from tokens that continue one; it leaves control tokens unchanged.
 */
import {
  fileHead,
  type GgufVocabulary,
  type Role,
  type Special,
  TokenType,
  tokenizerConfigOf,
} from './gguf_metadata.ts';
import type { TokenizerParts } from './tokenizer_parts.ts';

const kMark = '\u2581';
const kContinued = '##';

export function wordPiece(vocabulary: GgufVocabulary): TokenizerParts {
  const { metadata } = vocabulary;
  const tokens = vocabulary.tokens.map((token, id) => original(token, vocabulary.type(id)));
  const specials = roles(vocabulary, tokens);
  const { unk_token: unk, cls_token: cls, sep_token: sep } = specials;
  const special = new Set(Object.values(specials).map(({ id }) => id));
  const isSpecial = (id: number): boolean => vocabulary.isSpecial(id) || special.has(id);
  return {
    tokenizerConfig: tokenizerConfigOf(metadata, specials),
    tokenizerJson: {
      ...fileHead(vocabulary, { tokens, isSpecial }),
      normalizer: {
        type: 'BertNormalizer',
        clean_text: true,
        handle_chinese_chars: true,
        strip_accents: metadata.boolean('tokenizer.ggml.normalizer.strip_accents') ?? null,
        lowercase: lowercase(vocabulary, tokens),
      },
      pre_tokenizer: { type: 'BertPreTokenizer' },
      post_processor: {
        type: 'BertProcessing',
        cls: [cls.token, cls.id],
        sep: [sep.token, sep.id],
      },
      decoder: { type: 'WordPiece', prefix: kContinued, cleanup: true },
      model: {
        type: 'WordPiece',
        unk_token: unk.token,
        continuing_subword_prefix: kContinued,
        max_input_chars_per_word: 100,
        vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
      },
    },
  };
}

/** The token before the conversion. Older converters left tokens such as [unused0] unchanged, whatever their type. */
function original(token: string, type: number): string {
  if (token.startsWith(kMark)) return token.slice(kMark.length);
  if (type === TokenType.control || /^\[.+\]$/.test(token)) return token;
  return kContinued + token;
}

/**
 * BERT's special tokens by role. Some converters write [CLS] as bos or leave keys out; then the tokens are found by BERT's names.
 * @throws FormatError if the unknown token, [CLS] or [SEP] is missing
 */
function roles(
  vocabulary: GgufVocabulary,
  tokens: readonly string[],
): Record<'unk_token' | 'cls_token' | 'sep_token', Special> & Partial<Record<Role, Special>> {
  const named = (name: string): number | undefined => {
    const id = tokens.indexOf(name);
    return id < 0 ? undefined : id;
  };
  const renamed = ({ id }: Special): Special => ({ token: tokens[id] as string, id });
  const optional = (role: Role, name: string): Partial<Record<Role, Special>> => {
    const special = vocabulary.special(role, named(name));
    return special === null ? {} : { [role]: renamed(special) };
  };
  const bos = vocabulary.special('bos_token')?.id;
  return {
    unk_token: renamed(vocabulary.required('unk_token', named('[UNK]'))),
    cls_token: renamed(vocabulary.required('cls_token', bos ?? named('[CLS]'))),
    sep_token: renamed(vocabulary.required('sep_token', named('[SEP]'))),
    ...optional('pad_token', '[PAD]'),
    ...optional('mask_token', '[MASK]'),
  };
}

/**
 * Whether text is converted to lower case. The key is newer than the format and written only if it is true, so without it this is
 * inferred: the words of a lower-case model have no capital letters.
 */
function lowercase(vocabulary: GgufVocabulary, tokens: readonly string[]): boolean {
  return (
    vocabulary.metadata.boolean('tokenizer.ggml.normalizer.lowercase') ??
    !tokens.some((token, id) => {
      const isWord = vocabulary.type(id) === TokenType.normal && !/^\[.+\]$/.test(token);
      return isWord && /[A-Z]/.test(token);
    })
  );
}
