import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import {
  distinctN,
  meanDistinctN,
  selfBleu,
  selfBleuOfEach,
  type TokenizedText,
  tokenEntropy,
  wordsOf,
} from '../../lib/eval/diversity.ts';
import { describeShared, sharedPath } from '../support/shared.ts';

const kGolden = 'golden/evaluation/collapse.json';
const kTolerance = 1e-9;

interface Diversity {
  readonly texts: readonly TokenizedText[];
  readonly unigram_entropy: number;
  readonly unigram_entropy_normalised: number;
  readonly self_bleu_4: number;
  readonly self_bleu_4_each: readonly number[];
  readonly self_bleu_4_unsmoothed: number;
  readonly self_bleu_4_unsmoothed_each: readonly number[];
}

const near = (found: number | null, wanted: number) =>
  expect(Math.abs((found as number) - wanted)).toBeLessThanOrEqual(kTolerance);

describeShared('diversity by nltk and scipy', [kGolden], () => {
  const { diversity } = JSON.parse(readFileSync(sharedPath(kGolden), 'utf8')) as {
    diversity: Record<string, Diversity & Record<string, number>>;
  };

  it.each(Object.keys(diversity))('%s', (name) => {
    const golden = diversity[name] as Diversity & Record<string, number>;
    const { texts } = golden;
    for (const n of [1, 2, 3]) {
      near(distinctN(texts, n), golden[`distinct_${n}`] as number);
      near(meanDistinctN(texts, n), golden[`distinct_${n}_mean_of_texts`] as number);
    }
    const { entropy, normalized } = tokenEntropy(texts);
    near(entropy, golden.unigram_entropy);
    near(normalized, golden.unigram_entropy_normalised);
    near(selfBleu(texts), golden.self_bleu_4);
    near(selfBleu(texts, { smoothing: false }), golden.self_bleu_4_unsmoothed);
    selfBleuOfEach(texts).forEach((value, i) => {
      near(value, golden.self_bleu_4_each[i] as number);
    });
    selfBleuOfEach(texts, { smoothing: false }).forEach((value, i) => {
      near(value, golden.self_bleu_4_unsmoothed_each[i] as number);
    });
  });
});

describe('texts without words', () => {
  it('have values that are defined', () => {
    expect(distinctN([], 1)).toBe(0);
    expect(distinctN([[]], 2)).toBe(0);
    expect(tokenEntropy([[]])).toEqual({ entropy: 0, normalized: 0 });
    expect(selfBleu([])).toBeNull();
    expect(selfBleu([['a']])).toBe(0);
    expect(selfBleu([[], []])).toBe(0);
  });

  it('keep tokens apart that look alike', () => {
    expect(distinctN([[1, '1']], 1)).toBe(1);
    expect(
      distinctN(
        [
          ['a b', 'c'],
          ['a', 'b c'],
        ],
        2,
      ),
    ).toBe(1);
    expect(wordsOf('  one\ttwo\n')).toEqual(['one', 'two']);
  });
});
