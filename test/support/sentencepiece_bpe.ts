/** A SentencePiece BPE tokenizer with byte fallback, as Llama 2 has it in tokenizer.json, with a vocabulary learned from kSample. */
import { Tokenizer } from '../../lib/text/tokenizer.ts';
import { bytePieces, kSample, learnMerges } from './plain_sentencepiece.ts';

const { merges, chars } = learnMerges(kSample.replaceAll(' ', '▁'), 160);
/** The merges in their order. */
export const bpeMerges: readonly [string, string][] = merges;
/** The tokens that are no specials and no bytes. */
export const bpeWords: readonly string[] = [
  ...new Set([...merges.map(([a, b]) => a + b), ...chars]),
];
/** The vocabulary by id. */
export const bpeTokens: readonly string[] = [
  ...['<unk>', '<s>', '</s>'],
  ...bytePieces().map(({ token }) => token),
  ...bpeWords,
];

const replace = (from: string, content: string) => ({
  ...{ type: 'Replace', pattern: { String: from }, content },
});

/** @param prefix whether a text is given a space in front */
export function sentencePieceBpe(prefix: boolean): Tokenizer {
  return Tokenizer.fromJson(
    {
      version: '1.0',
      added_tokens: [0, 1, 2].map((id) => ({
        ...{ id, content: bpeTokens[id], special: true, normalized: false },
      })),
      normalizer: {
        type: 'Sequence',
        normalizers: [...(prefix ? [{ type: 'Prepend', prepend: '▁' }] : []), replace(' ', '▁')],
      },
      pre_tokenizer: null,
      post_processor: {
        type: 'TemplateProcessing',
        single: [
          { SpecialToken: { id: '<s>', type_id: 0 } },
          { Sequence: { id: 'A', type_id: 0 } },
        ],
        pair: [],
        special_tokens: { '<s>': { id: '<s>', ids: [1], tokens: ['<s>'] } },
      },
      decoder: {
        type: 'Sequence',
        decoders: [
          replace('▁', ' '),
          { type: 'ByteFallback' },
          { type: 'Fuse' },
          ...(prefix ? [{ type: 'Strip', content: ' ', start: 1, stop: 0 }] : []),
        ],
      },
      model: {
        type: 'BPE',
        unk_token: '<unk>',
        fuse_unk: true,
        byte_fallback: true,
        vocab: Object.fromEntries(bpeTokens.map((token, id) => [token, id])),
        merges,
      },
    },
    { bos_token: '<s>', eos_token: '</s>', unk_token: '<unk>' },
  );
}
