// The entire process stays within a memory budget in bytes, by the kernel's count: on batches of several lengths, and where memory is
// taken by something else than activations.
import { expect, it } from 'vitest';
import { deviceInfo } from '../../lib/device.ts';
import { runProgram } from '../support/child.ts';

interface Report {
  /** Predicted peak of the smallest plan; `most` is that of the largest. */
  least: number;
  most: number;
  /** The budget, between the two. */
  budget: number;
  peak: number;
}

async function reportOf(...args: string[]): Promise<Report> {
  const result = await runProgram('test/lifetime/programs/memory_budget.mjs', {
    ...{ args, hangMs: 60_000 },
  });
  expect(result).toMatchObject({ code: 0, signal: null, stopped: null, stderr: '' });
  return JSON.parse(result.stdout) as Report;
}

async function checkBudget(dtype: string, compute: string): Promise<void> {
  const { least, most, budget, peak } = await reportOf(dtype, compute);
  // A run that ignored the budget would come near `most`, one that saved too much memory near `least`.
  expect(most).toBeGreaterThan(1.4 * budget);
  expect(least).toBeLessThan(0.8 * budget);
  expect(peak).toBeLessThanOrEqual(budget);
  expect(peak).toBeGreaterThan(0.8 * budget);
}

const kIsLinux = process.platform === 'linux';

it.runIf(kIsLinux).each(['f32', 'bf16'])(
  'the process stays within its budget and makes use of it, in %s',
  (dtype) => checkBudget(dtype, 'dtype'),
);

it.runIf(kIsLinux && deviceInfo('cpu').int8 !== 'plain')(
  'the process stays within its budget and makes use of it, in bf16 with products in int8',
  () => checkBudget('bf16', 'int8'),
);

// Each of these took 7 to 73 % more than its budget where the plan did not count it.
it.runIf(kIsLinux).each([
  ['the term of singular values of a wide head', 'bf16', 'wide'],
  ['evaluations between two steps', 'bf16', 'evaluation'],
  ['the written result', 'bf16', 'result'],
  ['packed copies of a large head', 'f32', 'packed'],
  ['gradients of a large head', 'f32', 'full'],
  ['packed copies of a second model', 'f32', 'teacher'],
  ['all singular values', 'bf16', 'nuclear'],
  ['singular values of soft-capped logits', 'bf16', 'softcap'],
  ["a teacher's states of a whole step", 'bf16', 'adaptive'],
  ["a teacher's states that are kept in a file", 'bf16', 'cached'],
  ['a checkpoint of a whole model', 'bf16', 'resumed'],
])('a budget that was accepted is held with %s', async (_, dtype, form) => {
  const { least, budget, peak } = await reportOf(dtype, 'dtype', form);
  // The budget is little above the smallest plan, so that what the plan leaves out is seen.
  expect(budget).toBeLessThan(1.2 * least);
  expect(peak).toBeLessThanOrEqual(budget);
  expect(peak).toBeGreaterThan(0.6 * budget);
});
