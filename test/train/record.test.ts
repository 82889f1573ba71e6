import { expect, it } from 'vitest';
import { customTerms, makeRecord, StepClock, weightedTerms } from '../../lib/train/record.ts';

it('adds terms with their weights', () => {
  const values = { task: 2, consistency: 3, diversity: -1, svd: null };
  const weights = { consistency: 0.5, diversity: 0.25, svd: 0.1 };
  expect(weightedTerms(values, weights)).toEqual({
    loss: 2 + 1.5 - 0.25,
    taskLoss: 2,
    consistency: 3,
    diversity: -1,
    svd: null,
    consistencyWeight: 0.5,
    diversityWeight: 0.25,
    svdWeight: 0.1,
    custom: null,
  });
});

it("adds a user's loss and metrics with the micro-batches' shares", () => {
  const terms = customTerms();
  terms.addLoss(2, 0.25);
  terms.addLoss(1, 0.75);
  terms.addMetric('margin', 3, 0.25);
  terms.addMetric('margin', 5, 0.75);
  expect(terms.combined()).toMatchObject({ loss: 1.25, taskLoss: 1.25, custom: { margin: 4.5 } });
});

it('writes a record with the keys of metrics.jsonl', () => {
  const record = makeRecord({
    step: 1,
    epoch: 0.5,
    terms: weightedTerms(
      { task: 2, consistency: null, diversity: null, svd: null },
      { consistency: 0, diversity: 0, svd: 0 },
    ),
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
