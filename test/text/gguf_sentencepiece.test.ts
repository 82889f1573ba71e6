// SentencePiece vocabularies in GGUF files against plain definitions: BPE by scores with byte fallback, Unigram by the best
// segmentation; spaces, special tokens, unknown bytes; refusals.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, describe, expect, it } from 'vitest';
import { FormatError, UnsupportedError } from '../../lib/errors.ts';
import { Tokenizer } from '../../lib/text/tokenizer.ts';
import { compiledMap } from '../support/compiled_map.ts';
import {
  bytePieces,
  greedyPieces,
  idsWithBytes,
  kSample,
  learnMerges,
  type Piece,
  viterbi,
} from '../support/plain_sentencepiece.ts';

type Fields = Record<string, unknown>;

const folder = mkdtempSync(join(tmpdir(), 'balora-spm-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** Metadata as llama.cpp's converter writes it. */
function fields(model: string, pieces: readonly Piece[], over: Fields = {}): Fields {
  return {
    'general.architecture': 'llama',
    'tokenizer.ggml.model': model,
    'tokenizer.ggml.pre': 'default',
    'tokenizer.ggml.tokens': pieces.map(({ token }) => token),
    'tokenizer.ggml.scores': Float32Array.from(pieces, ({ score }) => score),
    'tokenizer.ggml.token_type': Int32Array.from(pieces, ({ type }) => type),
    ...over,
  };
}

const marked = (text: string) => text.replaceAll(' ', '▁');
const bare = { addSpecialTokens: false, parseSpecial: false };
const { merges, chars } = learnMerges(marked(kSample), 160);

const kSpecial: Piece[] = [
  { token: '<unk>', score: 0, type: 2 },
  { token: '<s>', score: 0, type: 3 },
  { token: '</s>', score: 0, type: 3 },
];

/**
 * A vocabulary in Llama's order: special tokens, bytes, pieces by rank, characters. `scale` > 1 gives
 * neighbours in rank equal scores.
 */
function spm(scale = 1): Piece[] {
  const made = [...new Set(merges.map(([a, b]) => a + b))];
  const normal = [...made, ...chars].map((token, rank) => ({
    token,
    score: -Math.floor(rank / scale),
    type: 1,
  }));
  return [...kSpecial, ...bytePieces(), ...normal];
}

/** Texts of characters in the vocabulary and others. */
const texts = fc
  .oneof(
    fc.string({
      unit: fc.constantFrom(...'abnthe 12ï世界', '  ', 'the', 't t', 'ab'),
      maxLength: 24,
    }),
    fc.string({
      unit: fc.constantFrom(...'at é\n\t😀한\u0301\ufeff\0Z', '👩🏽‍🚀', '<0x41>'),
      maxLength: 12,
    }),
    fc.string({ unit: 'binary', maxLength: 16 }),
  )
  .filter((text) => !text.includes('▁'));
const runs = { numRuns: 400, seed: 20 };

describe('a GGUF vocabulary of SentencePiece BPE', () => {
  // Tokens across words with the best scores, so that no word can be encoded alone.
  const across = ['t▁', 't▁t', 'e▁t'].map((token, i) => ({ token, score: 3 - i, type: 1 }));

  it.each([
    ['ranks', spm()],
    ['scores that many share', spm(7)],
    ['tokens of two words', [...spm(), ...across]],
  ])('joins the best-scored neighbours first: %s', (_, pieces) => {
    const scores = new Map(pieces.filter((p) => p.type === 1).map((p) => [p.token, p.score]));
    const tokenizer = Tokenizer.fromGguf(fields('llama', pieces));
    fc.assert(
      fc.property(texts, (text) => {
        const symbols = text === '' ? [] : greedyPieces(`▁${marked(text)}`, (t) => scores.get(t));
        const expected = idsWithBytes(
          symbols,
          pieces.map(({ token }) => token),
        );
        expect(tokenizer.encode(text, bare)).toEqual(expected);
        expect(tokenizer.encode(text, { parseSpecial: false })).toEqual([1, ...expected]);
        expect(tokenizer.decode(expected)).toBe(text);
      }),
      runs,
    );
  });

  it('gives the same ids after it is saved as a tokenizer.json', async () => {
    const tokenizer = Tokenizer.fromGguf(fields('llama', spm()));
    await tokenizer.savePretrained(join(folder, 'saved'));
    const saved = await Tokenizer.fromPretrained(join(folder, 'saved'));
    expect([saved.bosId, saved.eosId, saved.unkId]).toEqual([1, 2, 0]);
    fc.assert(
      fc.property(texts, (text) => {
        const ids = tokenizer.encode(text);
        expect(saved.encode(text)).toEqual(ids);
        expect(saved.decode(ids)).toBe(tokenizer.decode(ids));
      }),
      runs,
    );
  });

  it('adds a space before the text and after every special token, and nowhere else', () => {
    const tokenizer = Tokenizer.fromGguf(fields('llama', spm()));
    const part = (text: string) => tokenizer.encode(text, { addSpecialTokens: false });
    expect(part('')).toEqual([]);
    expect(tokenizer.encode('')).toEqual([1]);
    expect(part('the</s>cat')).toEqual([...part('the'), 2, ...part('cat')]);
    expect(part('<s>the')).toEqual([1, ...part('the')]);
    expect(tokenizer.token(part('the')[0] as number)).toMatch(/^▁t/);
    // Plain text: the token is split into characters.
    expect(part('</s>')).toEqual([2]);
    expect(tokenizer.encode('</s>', bare)).not.toContain(2);
    expect(tokenizer.decode(tokenizer.encode(' the  cat '), { skipSpecialTokens: true })).toBe(
      ' the  cat ',
    );
  });

  it("may have no space in front, and runs of spaces as tokens, like Gemma's", () => {
    const pieces = [
      ...spm(),
      { token: '  ', score: -1000, type: 4 },
      { token: '    ', score: -1000, type: 4 },
      { token: '<end_of_turn>', score: -1000, type: 3 },
    ];
    const tokenizer = Tokenizer.fromGguf(
      fields('llama', pieces, {
        'tokenizer.ggml.add_space_prefix': false,
        'tokenizer.ggml.add_bos_token': false,
        'tokenizer.ggml.add_eos_token': true,
      }),
    );
    const [two, four, turn] = [pieces.length - 3, pieces.length - 2, pieces.length - 1];
    const the = tokenizer.encode('the', bare);
    expect(tokenizer.token(the[0] as number)).toMatch(/^t/);
    expect(tokenizer.encode('      the<end_of_turn>')).toEqual([four, two, ...the, turn, 2]);
    expect(tokenizer.decode([four, two, ...the])).toBe('      the');
    const [one] = tokenizer.encode(' ', bare);
    expect(tokenizer.decode([one as number, ...the])).toBe(' the');
  });

  it("removes white space after Phi-3's special tokens", () => {
    const pieces = [...spm(), { token: '<|user|>', score: -1000, type: 3 }];
    const over = { 'general.architecture': 'phi3' };
    const tokenizer = Tokenizer.fromGguf(fields('llama', pieces, over));
    expect(tokenizer.encode('<|user|>\nthe')).toEqual(tokenizer.encode('<|user|>the'));
    expect(tokenizer.encode('<s> the')).not.toEqual(tokenizer.encode('<s>the'));
  });

  it('encodes an unknown character as the unknown token where it has no byte tokens', () => {
    const pieces = spm().filter(({ type }) => type !== 6);
    const tokenizer = Tokenizer.fromGguf(fields('llama', pieces));
    const [mark] = tokenizer.encode(' ', { addSpecialTokens: false });
    expect(mark).toBeGreaterThan(2);
    expect(tokenizer.encode('😀😀', bare).at(-1)).toBe(0);
  });

  it('is refused where its settings are unknown or contradict each other', () => {
    const level = spm().map((piece) => ({ ...piece, score: -1000 }));
    expect(() => Tokenizer.fromGguf(fields('llama', level))).toThrow(UnsupportedError);
    expect(() => Tokenizer.fromGguf(fields('llama', level))).toThrow(
      /all have the score -1000.*tokenizer\.json beside/,
    );
    const short = { 'tokenizer.ggml.scores': new Float32Array(3) };
    expect(() => Tokenizer.fromGguf(fields('llama', spm(), short))).toThrow(/scores has 3 entries/);
    const { 'tokenizer.ggml.scores': _, ...none } = fields('llama', spm());
    expect(() => Tokenizer.fromGguf(none)).toThrow(FormatError);
    const twice = [
      ...spm(),
      { token: 'the', score: 0, type: 1 },
      { token: 'the', score: 0, type: 1 },
    ];
    expect(() => Tokenizer.fromGguf(fields('llama', twice))).toThrow(/"the" has the ids/);
    const far = { 'tokenizer.ggml.eos_token_id': 100000 };
    expect(() => Tokenizer.fromGguf(fields('llama', spm(), far))).toThrow(
      /eos_token_id = 100000 is outside/,
    );
    expect(() => Tokenizer.fromGguf(fields('rwkv', spm()))).toThrow(
      /kind 'rwkv' is not supported \(known: gpt2, llama, t5, bert\)/,
    );
  });
});

/** A vocabulary in T5's order: padding, end, unknown, pieces; then unused rows. */
function t5(): Piece[] {
  const made = [...new Set(merges.map(([a, b]) => a + b))];
  // Irregular log-probabilities, so that no two segmentations have equal scores.
  const normal = [...made, ...chars].map((token, i) => ({
    token,
    score: Math.fround(-2 - 0.731 * Math.log1p(i) - 0.35 * ((i * 7919) % 13)),
    type: 1,
  }));
  return [
    { token: '<pad>', score: 0, type: 3 },
    { token: '</s>', score: 0, type: 3 },
    { token: '<unk>', score: 0, type: 2 },
    ...normal,
    { token: '[PAD1]', score: -1000, type: 5 },
    { token: '[PAD2]', score: -1000, type: 5 },
  ];
}

const kT5 = {
  'general.architecture': 't5',
  'tokenizer.ggml.add_space_prefix': true,
  'tokenizer.ggml.remove_extra_whitespaces': true,
};

describe('a GGUF vocabulary of Unigram', () => {
  const words = (text: string) => text.split(' ').filter((word) => word !== '');

  it('gives the best segmentation of the text with its spaces collapsed', async () => {
    const pieces = t5();
    const tokenizer = Tokenizer.fromGguf(fields('t5', pieces, kT5));
    await tokenizer.savePretrained(join(folder, 't5'));
    const saved = await Tokenizer.fromPretrained(join(folder, 't5'));
    fc.assert(
      fc.property(texts, (text) => {
        const whole = words(text)
          .map((word) => `▁${word}`)
          .join('');
        const expected = viterbi(whole, pieces, 2);
        expect(tokenizer.encode(text, bare)).toEqual(expected);
        expect(tokenizer.encode(text, { parseSpecial: false })).toEqual([...expected, 1]);
        expect(saved.encode(text, bare)).toEqual(expected);
        if (!expected.includes(2)) expect(tokenizer.decode(expected)).toBe(words(text).join(' '));
      }),
      runs,
    );
  });

  it('keeps the spaces where the file has this setting', () => {
    const pieces = t5();
    const over = { ...kT5, 'tokenizer.ggml.remove_extra_whitespaces': false };
    const tokenizer = Tokenizer.fromGguf(fields('t5', pieces, over));
    fc.assert(
      fc.property(texts, (text) => {
        const expected = text === '' ? [] : viterbi(`▁${marked(text)}`, pieces, 2);
        expect(tokenizer.encode(text, bare)).toEqual(expected);
      }),
      runs,
    );
  });

  it('scores an unknown character by the worst normal piece, and ignores unused rows', () => {
    const [q, qw, wx] = [-15, -2, -20].map((score, i) => ({
      token: ['q', 'qw', 'w☃'][i] as string,
      score,
      type: 1,
    })) as [Piece, Piece, Piece];
    const pieces = [...t5(), q, qw, wx];
    const tokenizer = Tokenizer.fromGguf(fields('t5', pieces, kT5));
    // qw and an unknown character (-2 - 30) have a better score than q and w☃ (-15 - 20).
    const ids = tokenizer.encode('qw☃', bare);
    expect(ids.slice(1)).toEqual([pieces.indexOf(qw), 2]);
    expect(ids).toEqual(viterbi('▁qw☃', pieces, 2));
  });

  it('applies the character map of the file', () => {
    const map = Buffer.from(compiledMap({ '\t': ' ', '\n': ' ', Ａ: 'a', '①': '1' }), 'base64');
    for (const bytes of [new Uint8Array(map), new Int8Array(map)]) {
      const over = { ...kT5, 'tokenizer.ggml.precompiled_charsmap': bytes };
      const tokenizer = Tokenizer.fromGguf(fields('t5', t5(), over));
      const plain = Tokenizer.fromGguf(fields('t5', t5(), kT5));
      expect(tokenizer.encode('\n\tthe\tＡ①\n')).toEqual(plain.encode('the a1'));
    }
  });

  it('has special tokens, and unused rows that are no tokens', () => {
    const pieces = t5();
    const tokenizer = Tokenizer.fromGguf(fields('t5', pieces, kT5));
    expect([tokenizer.padId, tokenizer.eosId, tokenizer.unkId, tokenizer.bosId]).toEqual([
      ...[0, 1, 2, null],
    ]);
    expect(tokenizer.vocabSize).toBe(pieces.length);
    expect(tokenizer.encode('the</s>', { addSpecialTokens: false }).at(-1)).toBe(1);
    expect(tokenizer.encode('the</s>', bare)).not.toContain(1);
    expect(tokenizer.decode([0, ...tokenizer.encode('the cat')], { skipSpecialTokens: true })).toBe(
      'the cat',
    );
  });
});
