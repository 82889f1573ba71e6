/** A Unigram tokenizer as T5 has it (`▁`, `<pad>` 0, `</s>` 1, `<unk>` 2), with a few words, for tests without any model. */
import { Tokenizer } from '../../lib/text/tokenizer.ts';

const kSpecial = ['<pad>', '</s>', '<unk>'];

/** The words and letters of the vocabulary, from id 3 on; the score of a word is above the sum of its letters'. */
export const kTinyT5Pieces: readonly (readonly [piece: string, score: number])[] = [
  ['▁', -2],
  ['▁the', -1],
  ['▁a', -1],
  ['▁cat', -1],
  ['▁sat', -1],
  ['▁Katze', -1],
  ['▁saß', -1],
  ...[...'abcdehinorst'].map((letter) => [letter, -4] as const),
];

/** The tokenizer.json. @param withEnd whether the tokenizer appends `</s>` to texts */
export function tinyT5TokenizerJson({ withEnd = true } = {}): Record<string, unknown> {
  const end = { '</s>': { id: '</s>', ids: [1], tokens: ['</s>'] } };
  const sequence = { Sequence: { id: 'A', type_id: 0 } };
  return {
    version: '1.0',
    added_tokens: kSpecial.map((content, id) => ({
      id,
      content,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: true,
    })),
    normalizer: null,
    pre_tokenizer: { type: 'Metaspace', replacement: '▁', prepend_scheme: 'always', split: true },
    post_processor: withEnd
      ? {
          type: 'TemplateProcessing',
          single: [sequence, { SpecialToken: { id: '</s>', type_id: 0 } }],
          pair: [],
          special_tokens: end,
        }
      : null,
    decoder: { type: 'Metaspace', replacement: '▁', prepend_scheme: 'always', split: true },
    model: {
      type: 'Unigram',
      unk_id: 2,
      vocab: [...kSpecial.map((token) => [token, 0]), ...kTinyT5Pieces],
      byte_fallback: false,
    },
  };
}

export const kTinyT5TokenizerConfig = {
  eos_token: '</s>',
  pad_token: '<pad>',
  unk_token: '<unk>',
};

export function tinyT5Tokenizer(options: { withEnd?: boolean } = {}): Tokenizer {
  return Tokenizer.fromJson(tinyT5TokenizerJson(options), kTinyT5TokenizerConfig);
}
