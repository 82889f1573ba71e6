import { expect, it } from 'vitest';
import type { TermValues } from '../../lib/losses/term_sums.ts';
import { makeRecord, StepClock, weightedTerms } from '../../lib/train/record.ts';

it('adds up the terms with their weights', () => {
  const values = { task: 2, consistency: 3, diversity: -1, svd: null };
  const weights = { consistency: 0.5, diversity: 0.25, svd: 0.1 };
  expect(weightedTerms(values, weights)).toEqual({
    loss: 2 + 1.5 - 0.25,
    taskLoss: 2,
    values: { consistency: 3, diversity: -1, svd: null },
    weights,
    custom: null,
  });
});

it('keeps custom terms separate from the fields of every record', () => {
  const { terms, consistency } = recordOf({ task: 2, consistency: 3, mine: 4 }, { mine: 0.5 });
  expect(consistency).toBe(3);
  expect(terms).toEqual({ mine: { value: 4, weight: 0.5 } });
});

function recordOf(values: TermValues, weights: Record<string, number>) {
  return makeRecord({
    ...{ step: 1, epoch: 0.5, terms: weightedTerms(values, weights), gradNorm: 3 },
    ...{ learningRate: 1e-4, tokens: 100, supervisedTokens: 40, seconds: 2, elapsedSeconds: 2 },
  });
}

it('writes a record with the keys of metrics.jsonl', () => {
  const record = recordOf(
    { task: 2, consistency: null, diversity: null, svd: null },
    { consistency: 0, diversity: 0, svd: 0 },
  );
  expect(Object.keys(record)).toEqual([
    'step',
    'epoch',
    'loss',
    'taskLoss',
    'consistency',
    'diversity',
    'svd',
    'consistencyWeight',
    'diversityWeight',
    'svdWeight',
    'gradNorm',
    'learningRate',
    'tokens',
    'supervisedTokens',
    'tokensPerSecond',
    'elapsedSeconds',
    'peakRssBytes',
  ]);
  expect(record.tokensPerSecond).toBe(50);
  expect(record.peakRssBytes).toBeGreaterThan(1e6);
});

it('estimates the remaining time from the last steps', () => {
  const clock = new StepClock(100);
  expect(clock.estimate(5)).toBe(0);
  clock.start();
  clock.stop();
  expect(clock.elapsed()).toBeGreaterThanOrEqual(100);
  expect(clock.estimate(10)).toBeCloseTo(10 * clock.estimate(1), 9);
});
