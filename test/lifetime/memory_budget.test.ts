// The entire process stays within a memory budget in bytes, by the kernel's count, on batches of several lengths.
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

async function checkBudget(dtype: string, compute: string): Promise<void> {
  const result = await runProgram('test/lifetime/programs/memory_budget.mjs', {
    ...{ args: [dtype, compute], hangMs: 60_000 },
  });
  expect(result).toMatchObject({ code: 0, signal: null, stopped: null, stderr: '' });
  const { least, most, budget, peak } = JSON.parse(result.stdout) as Report;
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
