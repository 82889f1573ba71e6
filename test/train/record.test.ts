import { expect, it } from 'vitest';
import { combineTerms, makeRecord, StepClock } from '../../lib/train/record.ts';

it('adds terms with their shares and weights', () => {
  const combined = combineTerms([
    { name: 'taskLoss', value: 2, share: 0.25, weight: 1 },
    { name: 'taskLoss', value: 1, share: 0.75, weight: 1 },
    { name: 'consistency', value: 4, share: 0.5, weight: 0.1 },
    { name: 'consistency', value: 2, share: 0.5, weight: 0.3 },
    { name: 'custom', label: 'margin', value: 3, share: 0.25, weight: 0 },
    { name: 'custom', label: 'margin', value: 5, share: 0.75, weight: 0 },
  ]);
  expect(combined).toEqual({
    loss: 1.25 + 0.2 + 0.3,
    taskLoss: 1.25,
    consistency: 3,
    diversity: null,
    svd: null,
    consistencyWeight: 0.2,
    diversityWeight: 0,
    svdWeight: 0,
    custom: { margin: 4.5 },
  });
});

it('writes a record with the keys of metrics.jsonl', () => {
  const record = makeRecord({
    step: 1,
    epoch: 0.5,
    terms: combineTerms([{ name: 'taskLoss', value: 2, share: 1, weight: 1 }]),
    gradNorm: 3,
    learningRate: 1e-4,
    tokens: 100,
    supervisedTokens: 40,
    seconds: 2,
    elapsedSeconds: 2,
  });
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

it('estimates from the last steps', () => {
  const clock = new StepClock(100);
  expect(clock.estimate(5)).toBe(0);
  clock.start();
  clock.stop();
  expect(clock.elapsed()).toBeGreaterThanOrEqual(100);
  expect(clock.estimate(10)).toBeCloseTo(10 * clock.estimate(1), 9);
});
