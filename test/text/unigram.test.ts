// SentencePiece's Unigram in tokenizer.json: the best segmentation against exhaustive search, the compiled character map on a trie
// built here, marks for spaces, unknown characters, byte fallback.
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { FormatError } from '../../lib/errors.ts';
import { PrecompiledMap } from '../../lib/text/precompiled.ts';
import { Tokenizer } from '../../lib/text/tokenizer.ts';
import { compiledMap } from '../support/compiled_map.ts';

type Json = Record<string, unknown>;

const kPieces: [string, number][] = [
  ['<pad>', 0],
  ['</s>', 0],
  ['<unk>', 0],
  ['▁', -3.1],
  ['a', -4.2],
  ['b', -4.7],
  ['c', -5.9],
  ['ab', -5.1],
  ['bc', -6.3],
  ['abc', -9.6],
  ['▁a', -4.4],
  ['▁ab', -7.5],
  ['ca', -7.25],
];
const kUnknown = 2;

function unigram(
  over: { normalizer?: unknown; preTokenizer?: Json; model?: Json } = {},
): Tokenizer {
  return Tokenizer.fromJson({
    version: '1.0',
    added_tokens: [0, 1, 2].map((id) => ({
      id,
      content: kPieces[id]?.[0],
      special: true,
      normalized: false,
    })),
    normalizer: over.normalizer ?? null,
    pre_tokenizer: over.preTokenizer ?? {
      type: 'Metaspace',
      replacement: '▁',
      prepend_scheme: 'always',
    },
    post_processor: {
      type: 'TemplateProcessing',
      single: [{ Sequence: { id: 'A', type_id: 0 } }, { SpecialToken: { id: '</s>', type_id: 0 } }],
      pair: [],
      special_tokens: { '</s>': { id: '</s>', ids: [1], tokens: ['</s>'] } },
    },
    decoder: { type: 'Metaspace', replacement: '▁', prepend_scheme: 'always' },
    model: { type: 'Unigram', unk_id: kUnknown, vocab: kPieces, ...over.model },
  });
}

/** The segmentation with the highest score; an unknown character has a score 10 below the worst piece. */
function best(word: string): { score: number; ids: number[] } {
  if (word === '') return { score: 0, ids: [] };
  const worst = Math.min(...kPieces.map(([, score]) => score)) - 10;
  const choices = kPieces.flatMap(([piece, score], id) =>
    id > kUnknown && word.startsWith(piece) ? [{ piece, score, id }] : [],
  );
  const first = Array.from(word)[0] as string;
  if (!choices.some(({ piece }) => piece === first)) {
    choices.push({ piece: first, score: worst, id: kUnknown });
  }
  return choices
    .map(({ piece, score, id }) => {
      const rest = best(word.slice(piece.length));
      const fused = id === kUnknown && rest.ids[0] === kUnknown ? [] : [id];
      return { score: score + rest.score, ids: [...fused, ...rest.ids] };
    })
    .reduce((a, b) => (b.score > a.score + 1e-9 ? b : a));
}

describe('Unigram', () => {
  it('gives the best segmentation of every word', () => {
    const tokenizer = unigram();
    const words = fc.array(
      fc.string({ unit: fc.constantFrom('a', 'b', 'c', 'd', 'é'), maxLength: 7 }),
    );
    fc.assert(
      fc.property(words, (list) => {
        const text = list.join(' ');
        const marked = text.replaceAll(' ', '▁');
        const pieces = (marked.startsWith('▁') ? marked : `▁${marked}`)
          .split(/(?=▁)/)
          .filter((piece) => piece !== '');
        const expected = text === '' ? [] : pieces.flatMap((piece) => best(piece).ids);
        expect(tokenizer.encode(text, { addSpecialTokens: false })).toEqual(expected);
      }),
      { numRuns: 300 },
    );
  });

  it('adds its special tokens, and decodes them', () => {
    const tokenizer = unigram();
    expect(tokenizer.encode('ab')).toEqual([11, 1]);
    expect(tokenizer.decode([10, 5])).toBe('ab');
  });

  it('joins adjacent unknown characters of a word into one token', () => {
    expect(unigram().encode('xyz', { addSpecialTokens: false })).toEqual([3, kUnknown]);
    expect(unigram().encode('xy z', { addSpecialTokens: false })).toEqual([
      3,
      kUnknown,
      3,
      kUnknown,
    ]);
  });

  it('accepts the older setting add_prefix_space', () => {
    const preTokenizer = { type: 'Metaspace', replacement: '▁', add_prefix_space: false };
    expect(unigram({ preTokenizer }).encode('b a', { addSpecialTokens: false })).toEqual([5, 10]);
  });

  it('encodes an unknown character as its bytes with byte fallback', () => {
    const bytes = Array.from({ length: 256 }, (_, byte): [string, number] => [
      `<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`,
      -20,
    ]);
    const model = { byte_fallback: true, vocab: [...kPieces, ...bytes] };
    const ids = unigram({ model }).encode('é', { addSpecialTokens: false });
    expect(ids).toEqual([3, kPieces.length + 0xc3, kPieces.length + 0xa9]);
    // A word of more bytes than a call takes arguments.
    const letters = 100_000;
    const long = unigram({ model }).encode('é'.repeat(letters), { addSpecialTokens: false });
    expect(long).toHaveLength(1 + 2 * letters);
  });
});

describe('compiled character maps', () => {
  const source = compiledMap({ '①': '1', ﬁ: 'fi', '\u00ad': '', é: 'E', '\u0301': '!', '\t': ' ' });

  it('replace only their own characters', () => {
    const map = new PrecompiledMap(source);
    expect(map.normalize('a①b')).toBe('a1b');
    expect(map.normalize('ﬁne\tsoft\u00adhyphen')).toBe('fine softhyphen');
    // NFKC would change both, which are not in this map.
    expect(map.normalize('② Ａ')).toBe('② Ａ');
  });

  it('replace a known grapheme as a whole, others character by character', () => {
    const map = new PrecompiledMap(source);
    expect(map.normalize('é')).toBe('E');
    expect(map.normalize('e\u0301')).toBe('e!');
    // A grapheme that begins with a known sequence is replaced completely, as in Hugging Face's tokenizers.
    expect(map.normalize('é\u0302')).toBe('E');
    // In a grapheme of 6 bytes or more only the characters are looked up.
    expect(map.normalize('é\u0302\u0302')).toBe('E\u0302\u0302');
  });

  it('are used for the normalizer Precompiled of tokenizer.json', () => {
    const normalizer = {
      type: 'Sequence',
      normalizers: [{ type: 'Precompiled', precompiled_charsmap: compiledMap({ '①': 'ab' }) }],
    };
    const [mapped, plain] = [unigram({ normalizer }), unigram()];
    expect(mapped.encode('①')).toEqual(plain.encode('ab'));
  });

  it('are refused where they are truncated', () => {
    expect(() => new PrecompiledMap('AAAA')).toThrow(FormatError);
    const cut = Buffer.from(source, 'base64').subarray(0, 100).toString('base64');
    expect(() => new PrecompiledMap(cut)).toThrow(/but its trie should have/);
    const long = new PrecompiledMap(compiledMap({ a: 'b'.repeat(257), c: 'b'.repeat(256) }));
    expect(() => long.normalize('a')).toThrow(
      /replaces a character by 257 bytes, more than the 256/,
    );
    expect(long.normalize('c')).toHaveLength(256);
  });
});
