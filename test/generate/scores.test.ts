import { describe, expect, it } from 'vitest';
import {
  argmax,
  firstInvalid,
  logSumExp,
  Probabilities,
  topLogprobs,
} from '../../lib/generate/scores.ts';

describe('scores', () => {
  it('argmax is the first of the best', () => {
    expect(argmax(Float32Array.of(1, 3, 2, 3))).toBe(1);
    expect(argmax(Float32Array.of(Number.NEGATIVE_INFINITY, -5))).toBe(1);
    expect(argmax(Float32Array.of(-2))).toBe(0);
  });

  it('firstInvalid finds NaN and infinity, and allows minus infinity', () => {
    expect(firstInvalid(Float32Array.of(1, Number.NEGATIVE_INFINITY))).toBe(-1);
    expect(firstInvalid(Float32Array.of(1, 2, Number.NaN))).toBe(2);
    expect(firstInvalid(Float32Array.of(Number.POSITIVE_INFINITY, Number.NaN))).toBe(0);
  });

  it('probabilities add up to 1 whatever the size of the scores', () => {
    const probabilities = new Probabilities();
    const row = probabilities.of(Float32Array.of(1e30, Number.NEGATIVE_INFINITY, 1e30));
    expect(Array.from(row)).toEqual([0.5, 0, 0.5]);
  });

  it('log-probabilities are those of the softmax, the likeliest first', () => {
    const logits = Float32Array.of(0, 2, 1, 2, Number.NEGATIVE_INFINITY);
    const sum = logSumExp(logits);
    const expected = Math.log(1 + Math.exp(1) + 2 * Math.exp(2));
    expect(sum).toBeCloseTo(expected, 12);
    const top = topLogprobs(logits, 3, sum);
    expect(top.map(({ token }) => token)).toEqual([1, 3, 2]);
    expect(top[2]?.logprob).toBeCloseTo(1 - expected, 12);
    expect(topLogprobs(logits, 0, sum)).toEqual([]);
    expect(topLogprobs(logits, 9, sum)).toHaveLength(5);
  });
});
