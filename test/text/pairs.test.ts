// WordPiece, sentence pairs and their truncation: MiniLM's golden ids, and post-processors of every kind on a tiny vocabulary.
import { readFileSync } from 'node:fs';
import { beforeAll, describe, expect, it } from 'vitest';
import { ArgumentError, FormatError, UnsupportedError } from '../../lib/errors.ts';
import { applyFrame, readFrame } from '../../lib/text/frame.ts';
import { Tokenizer } from '../../lib/text/tokenizer.ts';
import { describeShared, sharedPath } from '../support/shared.ts';
import { tinyWordPiece } from '../support/tiny_wordpiece.ts';

interface Golden {
  strings: { text: string; ids: number[]; tokens: string[] }[];
  pairs: { a: string; b: string; ids: number[]; type_ids: number[] }[];
}

const kModel = 'models/all-minilm-l6-v2';
const kGolden = 'golden/nlu/tokenizer.json';

describeShared('MiniLM tokenizer', [kModel, kGolden], () => {
  let tokenizer: Tokenizer;
  let golden: Golden;
  beforeAll(async () => {
    golden = JSON.parse(readFileSync(sharedPath(kGolden), 'utf8')) as Golden;
    tokenizer = await Tokenizer.fromPretrained(sharedPath(kModel));
  });

  it('gives the golden ids and tokens of every text', () => {
    expect(golden.strings.length).toBeGreaterThan(60);
    for (const { text, ids, tokens } of golden.strings) {
      expect(tokenizer.encode(text), JSON.stringify(text)).toEqual(ids);
      expect(ids.map((id) => tokenizer.token(id))).toEqual(tokens);
      const alone = tokenizer.encodePair(text);
      expect(alone).toEqual({ ids, typeIds: ids.map(() => 0), cut: 0 });
    }
  });

  it('gives the golden ids and segments of every pair', () => {
    for (const { a, b, ids, type_ids } of golden.pairs) {
      expect(tokenizer.encodePair(a, b)).toEqual({ ids, typeIds: type_ids, cut: 0 });
    }
  });

  it('has the special tokens, and reads them as text on request', () => {
    const { clsId, sepId, padId, maskId, unkId, bosId } = tokenizer;
    expect([clsId, sepId, padId, maskId, unkId, bosId]).toEqual([101, 102, 0, 103, 100, null]);
    const plain = tokenizer.encode('a [MASK] b', { parseSpecial: false });
    expect(plain).not.toContain(103);
    expect(tokenizer.encode('a [MASK] b')).toContain(103);
  });
});

describe('the truncation of a pair', () => {
  const tokenizer = tinyWordPiece(['a', 'b']);
  const [a, b] = [5, 6];
  const texts = (n: number, m: number): [string, string] => [
    Array(n).fill('a').join(' '),
    Array(m).fill('b').join(' '),
  ];
  const count = (ids: readonly number[], id: number) => ids.filter((x) => x === id).length;

  // Hugging Face's longest_first: [n, m, maxLength] -> remaining tokens of a and b (3 more are special tokens).
  it.each([
    [2, 2, 7, 2, 2],
    [2, 5, 8, 2, 3],
    [5, 2, 8, 3, 2],
    [5, 5, 8, 2, 3],
    [6, 5, 8, 3, 2],
    [5, 6, 9, 3, 3],
    [1, 9, 4, 0, 1],
    [9, 0, 6, 3, 0],
    [0, 9, 6, 0, 3],
  ])('%i and %i tokens within %i: %i and %i', (n, m, maxLength, left, right) => {
    const { ids, typeIds, cut } = tokenizer.encodePair(...texts(n, m), { maxLength });
    expect([count(ids, a), count(ids, b)]).toEqual([left, right]);
    expect(ids.length).toBeLessThanOrEqual(maxLength);
    expect(cut).toBe(n + m - left - right);
    expect(ids[0]).toBe(2);
    expect(ids.at(-1)).toBe(3);
    expect(typeIds).toEqual([...Array(left + 2).fill(0), ...Array(right + 1).fill(1)]);
  });

  it('keeps the special tokens around a single text', () => {
    const { ids, cut } = tokenizer.encodePair('a a a a', null, { maxLength: 4 });
    expect(ids).toEqual([2, a, a, 3]);
    expect(cut).toBe(2);
  });

  it('is refused where no token of text would remain', () => {
    expect(() => tokenizer.encodePair('a', null, { maxLength: 2 })).toThrow(ArgumentError);
    expect(() => tokenizer.encodePair('a', 'b', { maxLength: 3 })).toThrow(
      /maxLength must be above 3, the number of special tokens, got 3/,
    );
    const bare = { maxLength: 1, addSpecialTokens: false };
    expect(tokenizer.encodePair('a a', null, bare).ids).toEqual([a]);
  });
});

describe('special tokens around texts', () => {
  const pairOf = (config: unknown) => applyFrame(readFrame(config), [10], [20]);

  it('without a post-processor, or with one for offsets: none', () => {
    expect(pairOf(null)).toEqual({ ids: [10, 20], typeIds: [0, 0], cut: 0 });
    expect(pairOf({ type: 'ByteLevel' }).ids).toEqual([10, 20]);
  });

  it('RoBERTa: two separators, one segment', () => {
    const roberta = { type: 'RobertaProcessing', cls: ['<s>', 0], sep: ['</s>', 2] };
    expect(pairOf(roberta)).toEqual({
      ids: [0, 10, 2, 2, 20, 2],
      typeIds: [0, 0, 0, 0, 0, 0],
      cut: 0,
    });
  });

  it('of a template inside a sequence of post-processors', () => {
    const sequence = (id: string, type_id: number) => ({ Sequence: { id, type_id } });
    const special = { SpecialToken: { id: 'x', type_id: 1 } };
    const template = {
      type: 'TemplateProcessing',
      single: [sequence('A', 0), special],
      pair: [sequence('B', 1), special, sequence('A', 0)],
      special_tokens: { x: { id: 'x', ids: [7, 8], tokens: ['x', 'y'] } },
    };
    const whole = { type: 'Sequence', processors: [{ type: 'ByteLevel' }, template] };
    expect(pairOf(whole)).toEqual({ ids: [20, 7, 8, 10], typeIds: [1, 1, 1, 0], cut: 0 });
  });

  it('of an unknown post-processor are refused', () => {
    expect(() => readFrame({ type: 'Other' })).toThrow(UnsupportedError);
    expect(() => readFrame({ type: 'BertProcessing', cls: ['x', 1] })).toThrow(/no id for sep/);
    const template = {
      type: 'TemplateProcessing',
      single: [{ SpecialToken: { id: 'x' } }],
      pair: [],
    };
    expect(() => readFrame(template)).toThrow(FormatError);
  });
});
