import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import {
  learningRateSchedule,
  SCHEDULER_NAMES,
  type SchedulerOptions,
  warmupStepsFrom,
} from '../../lib/optim/schedulers.ts';
import { fixturePath } from '../support/fixtures.ts';

interface Table {
  scheduler: string;
  total: number;
  warmup: number;
  lr: number;
  options: Record<string, number | string>;
  lrs: number[];
}

const camel = (name: string): string =>
  name.replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase());

describe('schedules of transformers 5.24', () => {
  const golden = JSON.parse(readFileSync(fixturePath('optim/schedulers.json'), 'utf8')) as {
    warmup_from_ratio: { total: number; ratio: number; warmup_steps: number }[];
    tables: Table[];
  };

  it.each(
    golden.tables.map(
      (table, i) => [`${i} ${table.scheduler} ${table.total}/${table.warmup}`, table] as const,
    ),
  )('%s', (_, table) => {
    const options = Object.fromEntries(
      Object.entries(table.options).map(([key, value]) => [camel(key), value]),
    );
    const rate = learningRateSchedule({
      scheduler: table.scheduler,
      total: table.total,
      warmup: table.warmup,
      learningRate: table.lr,
      options: options as SchedulerOptions,
    });
    table.lrs.forEach((expected, step) => {
      expect(Math.abs(rate(step) - expected), `step ${step}: ${rate(step)}`).toBeLessThanOrEqual(
        1e-9 * table.lr,
      );
    });
  });

  it('has a table for every name', () => {
    expect(new Set(golden.tables.map(({ scheduler }) => scheduler))).toEqual(
      new Set(SCHEDULER_NAMES),
    );
  });

  it('convert a warm-up ratio to steps', () => {
    for (const { total, ratio, warmup_steps } of golden.warmup_from_ratio) {
      expect(warmupStepsFrom(ratio, total), `${ratio} of ${total}`).toBe(warmup_steps);
    }
  });
});

it('a warm-up of 1 or more is a number of steps', () => {
  expect(warmupStepsFrom(1, 200)).toBe(1);
  expect(warmupStepsFrom(7.9, 200)).toBe(7);
});

it('a polynomial whose warm-up fills the run is defined at its last step', () => {
  const rate = learningRateSchedule({
    scheduler: 'polynomial',
    total: 10,
    warmup: 10,
    learningRate: 1e-3,
  });
  expect(rate(9)).toBeCloseTo(9e-4, 12);
  expect(rate(10)).toBeCloseTo(1e-7, 15);
});

it.each([
  [{ scheduler: 'cosin' }, /unknown scheduler "cosin".*cosine_with_restarts/],
  [{ scheduler: 'toString' }, /unknown scheduler/],
  [{ scheduler: 'reduce_lr_on_plateau' }, /depends on the evaluation/],
  [{ scheduler: 'cosine_with_min_lr' }, /one of minLr and minLrRate/],
  [{ scheduler: 'warmup_stable_decay' }, /numDecaySteps/],
  [{ scheduler: 'polynomial', options: { lrEnd: 1 } }, /lrEnd \(1\) must be smaller/],
  [
    { scheduler: 'inverse_sqrt', options: { timescale: 0 } },
    /timescale must be a number > 0, got 0/,
  ],
  [{ scheduler: 'inverse_sqrt', options: { timescale: -3 } }, /timescale must be/],
  [{ total: 0 }, /total must be a whole number >= 1, got 0/],
  [{ warmup: -1 }, /warmup must be/],
  [{ learningRate: Number.NaN }, /learningRate must be finite/],
])('refuses %j', (change, message) => {
  const good = { scheduler: 'linear', total: 10, warmup: 0, learningRate: 1e-3 };
  expect(() => learningRateSchedule({ ...good, ...change })).toThrow(message);
});

it('every rate is finite', () => {
  const rate = learningRateSchedule({
    scheduler: 'cosine_with_min_lr',
    ...{ total: 10, warmup: 2, learningRate: 0, options: { minLr: 1e-5 } },
  });
  expect(rate(1)).toBe(0);
  expect(() => rate(2)).toThrow(/options of cosine_with_min_lr give step 2 of 10 the rate NaN/);
});

it('no rate is below zero', () => {
  const rate = learningRateSchedule({
    scheduler: 'polynomial',
    ...{ total: 10, warmup: 0, learningRate: 0.1, options: { lrEnd: -1 } },
  });
  expect(rate(0)).toBeCloseTo(0.1);
  expect(() => rate(9)).toThrow(/options of polynomial give step 9 of 10 the rate -0\.\d/);
});

it('a negative warm-up is refused', () => {
  expect(() => warmupStepsFrom(-0.5, 10)).toThrow(/warmupSteps must be finite/);
});
