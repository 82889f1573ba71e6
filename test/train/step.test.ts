import { expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { StepClock, weightedTerms } from '../../lib/train/step.ts';
import { Trainer } from '../../lib/train/trainer.ts';
import { TinyModel, tinyBatches, tinySource } from '../support/tiny_model.ts';

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

it('has no finite loss where a metric is not finite, so that the run ends', () => {
  expect(weightedTerms({ task: 2, 'custom.norm': Number.NaN }, {}).loss).toBeNaN();
});

it('writes a record with the keys of metrics.jsonl', async () => {
  const tuned = await AdapterModel.create(new TinyModel(), { r: 2 });
  const data = tinySource(tinyBatches());
  const { last } = await new Trainer({ tuned, data, maxSteps: 1 }).train();
  const line = JSON.stringify(last);
  expect(Object.keys(JSON.parse(line))).toEqual([
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
  const { tokens, tokensPerSecond, elapsedSeconds, peakRssBytes } = JSON.parse(line);
  expect(tokensPerSecond).toBeGreaterThanOrEqual(tokens / elapsedSeconds);
  expect(peakRssBytes).toBeGreaterThan(1e6);
});

it('estimates the remaining time from the last steps', () => {
  const clock = new StepClock(100);
  expect(clock.estimate(5)).toBe(0);
  clock.start();
  clock.stop();
  expect(clock.elapsed()).toBeGreaterThanOrEqual(100);
  expect(clock.estimate(10)).toBeCloseTo(10 * clock.estimate(1), 9);
});
