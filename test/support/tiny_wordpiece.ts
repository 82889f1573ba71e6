/** A WordPiece tokenizer like BERT's with a vocabulary of a few tokens, for tests without any model. */
import { Tokenizer } from '../../lib/text/tokenizer.ts';

const kSpecial = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]'];

/** The tokenizer.json. Ids: the special tokens 0-4, then the given tokens in order. */
export function tinyWordPieceJson(pieces: readonly string[]): Record<string, unknown> {
  const tokens = [...kSpecial, ...pieces];
  return {
    version: '1.0',
    added_tokens: kSpecial.map((content, id) => ({
      id,
      content,
      special: true,
      normalized: false,
    })),
    normalizer: {
      type: 'BertNormalizer',
      clean_text: true,
      handle_chinese_chars: true,
      lowercase: true,
    },
    pre_tokenizer: { type: 'BertPreTokenizer' },
    post_processor: { type: 'BertProcessing', cls: ['[CLS]', 2], sep: ['[SEP]', 3] },
    decoder: { type: 'WordPiece', prefix: '##', cleanup: true },
    model: {
      type: 'WordPiece',
      unk_token: '[UNK]',
      continuing_subword_prefix: '##',
      max_input_chars_per_word: 100,
      vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
    },
  };
}

export const kTinyWordPieceConfig = {
  unk_token: '[UNK]',
  cls_token: '[CLS]',
  sep_token: '[SEP]',
  pad_token: '[PAD]',
  mask_token: '[MASK]',
};

export function tinyWordPiece(pieces: readonly string[]): Tokenizer {
  return Tokenizer.fromJson(tinyWordPieceJson(pieces), kTinyWordPieceConfig);
}
