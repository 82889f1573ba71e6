// WordPiece vocabularies in GGUF files give the ids of the tokenizer.json that they were made from, in both versions of the
// converter, cased and uncased.
import { readFileSync } from 'node:fs';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Tokenizer } from '../../lib/text/tokenizer.ts';
import { wordPieceFields } from '../support/gguf_wordpiece.ts';
import { describeShared, sharedPath } from '../support/shared.ts';
import { kTinyWordPieceConfig, tinyWordPieceJson } from '../support/tiny_wordpiece.ts';

type Json = Record<string, unknown>;

const kSpellings = [{ former: false }, { former: true }];
const kOdd = [
  '',
  ' ',
  'Hello, World!',
  'unaffable ÜBER naïve café',
  'e\u0301 \u00ad soft\u200bwidth \ufeff bom \0 nul \ufffd',
  '你好世界 漢字かな交じり文 한국어 𠀋𪜀',
  '👩🏽‍🚀 🏳️‍🌈 ☃ ½ Ⅷ ﬁ ß İstanbul',
  '[CLS] is [MASK] not [unused0] [UNK][SEP]',
  "don't $5.00 a_b #tag ##hash <s> ▁mark",
  'x'.repeat(101),
];

/** Checks that both give the same ids for a text and for a pair, and the same text when decoding. */
function expectEqual(got: Tokenizer, want: Tokenizer, text: string, other: string): void {
  const ids = want.encode(text);
  expect(got.encode(text), JSON.stringify(text)).toEqual(ids);
  expect(got.encode(text, { parseSpecial: false })).toEqual(
    want.encode(text, { parseSpecial: false }),
  );
  expect(got.encodePair(text, other)).toEqual(want.encodePair(text, other));
  expect(got.decode(ids)).toBe(want.decode(ids));
}

const texts = fc.oneof(
  fc.string({ unit: 'binary', maxLength: 30 }),
  fc.string({ unit: 'grapheme', maxLength: 30 }),
  fc
    .array(fc.constantFrom(...kOdd, 'a', 'good', 'films', 'plot', 'goodness'), { maxLength: 5 })
    .map((words) => words.join(' ')),
);

describeShared("MiniLM's vocabulary in a GGUF file", ['models/all-minilm-l6-v2'], () => {
  it.each(kSpellings)('gives the ids of its tokenizer.json, former: $former', async (spelling) => {
    const path = sharedPath('models/all-minilm-l6-v2');
    const want = await Tokenizer.fromPretrained(path);
    const json = JSON.parse(readFileSync(`${path}/tokenizer.json`, 'utf8')) as Json;
    const got = Tokenizer.fromGguf(wordPieceFields(json, spelling));
    for (const text of kOdd) expectEqual(got, want, text, 'a second text');
    fc.assert(
      fc.property(texts, texts, (a, b) => expectEqual(got, want, a, b)),
      { numRuns: 400, seed: 21 },
    );
    for (let id = 0; id < want.vocabSize; id++) {
      if (got.token(id) !== want.token(id))
        expect([id, got.token(id)]).toEqual([id, want.token(id)]);
    }
    expect([got.vocabSize, got.clsId, got.sepId, got.padId, got.unkId, got.maskId]).toEqual([
      ...[30522, 101, 102, 0, 100, 103],
    ]);
  });
});

describe('a WordPiece vocabulary in a GGUF file', () => {
  const kPieces = [
    'a',
    'good',
    '##ness',
    'film',
    '##s',
    'plot',
    '.',
    '[unused0]',
    'cafe',
    '##́',
    '你',
  ];

  it.each(kSpellings)('gives the ids of its tokenizer.json, former: $former', (spelling) => {
    const json = tinyWordPieceJson(kPieces);
    const want = Tokenizer.fromJson(json, kTinyWordPieceConfig);
    const got = Tokenizer.fromGguf(wordPieceFields(json, spelling));
    expect(got.encode('Goodness films.')).toEqual([2, 6, 7, 8, 9, 11, 3]);
    fc.assert(
      fc.property(texts, texts, (a, b) => expectEqual(got, want, a, b)),
      { numRuns: 300, seed: 22 },
    );
    expect(got.token(12)).toBe('[unused0]');
    expect([got.bosId, got.eosId]).toEqual([null, null]);
  });

  it('keeps capitals where the vocabulary has them, or the file has this setting', () => {
    const cased = wordPieceFields(tinyWordPieceJson([...kPieces, 'Good', 'É']));
    expect(Tokenizer.fromGguf(cased).encode('Good good É')).toEqual([2, 16, 6, 17, 3]);
    const said = { ...cased, 'tokenizer.ggml.normalizer.lowercase': true };
    expect(Tokenizer.fromGguf(said).encode('Good good')).toEqual([2, 6, 6, 3]);
    const kept = {
      ...wordPieceFields(tinyWordPieceJson([...kPieces, 'café'])),
      'tokenizer.ggml.normalizer.strip_accents': false,
    };
    expect(Tokenizer.fromGguf(kept).encode('Café')).toEqual([2, 16, 3]);
  });

  it('gives the texts of a pair different segments', () => {
    const got = Tokenizer.fromGguf(wordPieceFields(tinyWordPieceJson(kPieces)));
    expect(got.encodePair('a film', 'good')).toEqual({
      ids: [2, 5, 8, 3, 6, 3],
      typeIds: [0, 0, 0, 0, 1, 1],
      cut: 0,
    });
  });

  it('is refused with the name of a missing key', () => {
    const json = tinyWordPieceJson(kPieces);
    const { 'tokenizer.ggml.seperator_token_id': _, ...rest } = wordPieceFields(json);
    const tokens = (rest['tokenizer.ggml.tokens'] as string[]).map((token) =>
      token === '[SEP]' ? '<sep>' : token,
    );
    expect(Tokenizer.fromGguf(rest).sepId).toBe(3);
    expect(() => Tokenizer.fromGguf({ ...rest, 'tokenizer.ggml.tokens': tokens })).toThrow(
      /seperator_token_id is missing/,
    );
  });
});
