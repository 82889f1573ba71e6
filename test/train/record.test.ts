import { expect, it } from 'vitest';
import type { TermValues } from '../../lib/losses/term_sums.ts';
import { makeRecord, StepClock, weightedTerms } from '../../lib/train/record.ts';

it('adds up the terms with their weights', () => {
  const values = { task: 2, consistency: 3, diversity: -1, svd: null };
  const weights = { consistency: 0.5, diversity: 0.25, svd: 0.1 };
  expect(weightedTerms(values, weights)).toEqual({
    loss: 2 + 1.5 - 0.25,
    taskLoss: 2,
    terms: {
      consistency: { value: 3, weight: 0.5 },
      diversity: { value: -1, weight: 0.25 },
      svd: { value: null, weight: 0.1 },
    },
  });
});

it('keeps metrics of a loss apart from the terms', () => {
  const losses = weightedTerms({ task: 2, mine: 4, 'custom.norm': 7 }, { mine: 0.5 });
  expect(losses).toEqual({
    ...{ loss: 4, taskLoss: 2 },
    ...{ terms: { mine: { value: 4, weight: 0.5 } }, custom: { norm: 7 } },
  });
});

function recordOf(values: TermValues, weights: Record<string, number>) {
  return makeRecord({
    ...{ step: 1, epoch: 0.5, losses: weightedTerms(values, weights), gradNorm: 3 },
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
    'terms',
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
