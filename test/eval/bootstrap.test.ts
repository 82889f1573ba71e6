import { expect, it } from 'vitest';
import { confidenceIntervals } from '../../lib/eval/bootstrap.ts';
import { summarize } from '../../lib/eval/score.ts';
import type { ItemResult } from '../../lib/eval/tasks/task.ts';

const mean = (items: readonly ItemResult[]) => summarize({ name: 'own' }, items);

it('agrees with the normal approximation of a mean', async () => {
  const items = Array.from({ length: 400 }, (_, i) => ({ metrics: { acc: Number(i % 4 === 0) } }));
  const { acc } = await confidenceIntervals(items, mean, { resamples: 2000 });
  const deviation = 1.96 * Math.sqrt((0.25 * 0.75) / 400);
  expect(acc?.[0]).toBeCloseTo(0.25 - deviation, 2);
  expect(acc?.[1]).toBeCloseTo(0.25 + deviation, 2);
});

it('depends on the seed and nothing else', async () => {
  const items = Array.from({ length: 30 }, (_, i) => ({ metrics: { acc: Number(i % 3 === 0) } }));
  const of = (seed: number) => confidenceIntervals(items, mean, { resamples: 200, seed });
  expect(await of(1)).toEqual(await of(1));
  expect(await of(1)).not.toEqual(await of(2));
});

it('has no interval for an undefined number, and none that is wide for equal items', async () => {
  const items = [{ metrics: { acc: 1 } }, { metrics: { acc: 1 } }];
  const found = await confidenceIntervals(items, (given) => ({ ...mean(given), bias: null }));
  expect(found).toEqual({ acc: [1, 1], bias: null });
});

it('has no interval for one item, whose samples are all the same', async () => {
  expect(await confidenceIntervals([{ metrics: { acc: 1 } }], mean)).toEqual({ acc: null });
});

it('lets the event loop run', async () => {
  const items = Array.from({ length: 5000 }, (_, i) => ({ metrics: { acc: i % 2 } }));
  let turns = 0;
  const timer = setInterval(() => turns++, 1);
  await confidenceIntervals(items, mean, { resamples: 300 });
  clearInterval(timer);
  expect(turns).toBeGreaterThan(3);
});
