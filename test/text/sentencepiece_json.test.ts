// SentencePiece tokenizers in tokenizer.json files, against plain definitions: BPE with byte fallback (Llama 2, Mistral, Gemma,
// Phi-3), and T5's Unigram.
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Tokenizer } from '../../lib/text/tokenizer.ts';
import { compiledMap } from '../support/compiled_map.ts';
import { idsWithBytes, type Piece, viterbi } from '../support/plain_sentencepiece.ts';
import { bpeMerges, bpeTokens, bpeWords, sentencePieceBpe } from '../support/sentencepiece_bpe.ts';

/** BPE by the list of merges: repeatedly joins the leftmost occurrence of the pair that comes first in the list. */
function joinedByList(text: string): string[] {
  const rank = new Map(bpeMerges.map(([a, b], i) => [`${a}\0${b}`, i]));
  const symbols = Array.from(text);
  for (;;) {
    let [best, bestRank] = [-1, Number.POSITIVE_INFINITY];
    for (let i = 0; i + 1 < symbols.length; i++) {
      const found = rank.get(`${symbols[i]}\0${symbols[i + 1]}`);
      if (found !== undefined && found < bestRank) [best, bestRank] = [i, found];
    }
    if (best < 0) return symbols;
    symbols.splice(best, 2, `${symbols[best]}${symbols[best + 1]}`);
  }
}

const units = [
  'a',
  'b',
  't',
  'the',
  'an',
  ' ',
  '  ',
  '1',
  'ï',
  '世',
  '😀',
  'é',
  '\n',
  '\ufeff',
  '👩🏽‍🚀',
];
const texts = fc
  .oneof(
    fc.string({ unit: fc.constantFrom(...units), maxLength: 24 }),
    fc.string({ unit: 'binary', maxLength: 16 }),
  )
  .filter((text) => !text.includes('▁'));
const runs = { numRuns: 400, seed: 23 };
const bare = { addSpecialTokens: false, parseSpecial: false };

describe('SentencePiece BPE', () => {
  it.each([
    ['with a space in front (Llama 2, Mistral, Phi-3)', true],
    ['without (Gemma)', false],
  ])('joins by the list of merges, unknown characters as bytes: %s', (_, prefix) => {
    const tokenizer = sentencePieceBpe(prefix);
    fc.assert(
      fc.property(texts, (text) => {
        const marked = text.replaceAll(' ', '▁');
        const whole = prefix && text !== '' ? `▁${marked}` : marked;
        const expected = idsWithBytes(joinedByList(whole), bpeTokens);
        expect(tokenizer.encode(text, bare)).toEqual(expected);
        expect(tokenizer.encode(text, { parseSpecial: false })).toEqual([1, ...expected]);
        expect(tokenizer.decode(expected)).toBe(text);
      }),
      runs,
    );
  });

  it('decodes invalid bytes to U+FFFD, and a byte order mark to itself', () => {
    const byte = (value: number) => 3 + value;
    expect(sentencePieceBpe(false).decode([byte(0xe4), byte(0xb8)])).toBe('\ufffd');
    expect(sentencePieceBpe(false).decode([byte(0xef), byte(0xbb), byte(0xbf), byte(0x41)])).toBe(
      '\ufeffA',
    );
  });
});

describe("T5's Unigram", () => {
  const pieces: Piece[] = [
    { token: '<pad>', score: 0, type: 3 },
    { token: '</s>', score: 0, type: 3 },
    { token: '<unk>', score: 0, type: 2 },
    ...bpeWords.map((token, i) => ({
      token,
      score: -2 - 0.731 * Math.log1p(i) - 0.35 * ((i * 7919) % 13),
      type: 1,
    })),
  ];

  it('gives the best segmentation of every word', () => {
    const tokenizer = Tokenizer.fromJson({
      version: '1.0',
      added_tokens: pieces
        .slice(0, 3)
        .map(({ token }, id) => ({ id, content: token, special: true, normalized: false })),
      normalizer: {
        type: 'Precompiled',
        precompiled_charsmap: compiledMap({ '①': '1', '\n': ' ' }),
      },
      pre_tokenizer: {
        type: 'Sequence',
        pretokenizers: [
          { type: 'WhitespaceSplit' },
          { type: 'Metaspace', replacement: '▁', add_prefix_space: true },
        ],
      },
      post_processor: null,
      decoder: { type: 'Metaspace', replacement: '▁', add_prefix_space: true },
      model: {
        type: 'Unigram',
        unk_id: 2,
        vocab: pieces.map(({ token, score }) => [token, score]),
      },
    });
    // The definition splits at spaces and line breaks alone; another test has other white space.
    const plain = texts.filter((text) => !/[^\S \n]|\p{Cc}(?<!\n)/u.test(text));
    fc.assert(
      fc.property(plain, (text) => {
        const mapped = text
          .replaceAll('①', '1')
          .split(/[ \n]/)
          .filter((word) => word !== '');
        const expected = mapped.flatMap((word) => viterbi(`▁${word}`, pieces, 2));
        expect(tokenizer.encode(text, bare)).toEqual(expected);
      }),
      runs,
    );
    expect(tokenizer.encode('the</s>', bare)).not.toContain(1);
    expect(tokenizer.encode('the</s>', { addSpecialTokens: false }).at(-1)).toBe(1);
  });
});
