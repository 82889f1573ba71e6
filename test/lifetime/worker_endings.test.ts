// A worker may end in any way and at any moment without affecting its process. The moments are drawn from seeds;
// BALORA_MOMENTS=1-1000 in the environment runs other seeds than the default ones.
import { expect, it } from 'vitest';
import { runProgram } from '../support/child.ts';

const kMoments = process.env.BALORA_MOMENTS ?? '1-80';
const kInOneProcess = 40;

function ranges(moments: string): { first: number; last: number }[] {
  const [from, to = from] = moments.split('-').map(Number) as [number, number?];
  const count = Math.ceil((to - from + 1) / kInOneProcess);
  return Array.from({ length: count }, (_, i) => {
    const first = from + i * kInOneProcess;
    return { first, last: Math.min(first + kInOneProcess - 1, to) };
  });
}

it.each(ranges(kMoments))('moments $first to $last', async ({ first, last }) => {
  const result = await runProgram('test/lifetime/programs/worker_endings.mjs', {
    args: [`${first}`, `${last}`],
    hangMs: 60_000,
  });
  const { code, signal, stopped, stderr } = result;
  const lines = result.stdout.trimEnd().split('\n');
  // Where the process died, these lines show what the last workers were doing.
  const dying = code === 0 ? [] : lines.slice(-8);
  expect({ code, signal, stopped, stderr, dying }).toEqual({
    ...{ code: 0, signal: null, stopped: null, stderr: '', dying: [] },
  });
  const count = last - first + 1;
  expect(lines.at(-1)).toMatch(new RegExp(`^${count} of ${count} survived`));
});

interface Held {
  spaceMiB: number;
  ownMiB: number;
  threads: number;
}

it.runIf(process.platform === 'linux')(
  'a terminated worker leaves no memory and no threads behind',
  async () => {
    const result = await runProgram('test/lifetime/programs/worker_memory.mjs', {});
    expect(result).toMatchObject({ code: 0, signal: null, stopped: null, stderr: '' });
    const samples = JSON.parse(result.stdout) as { during: Held; after: Held }[];
    // The C library's arenas and V8 reach their final size with the second worker.
    const [settled, last] = [
      samples[2] as { during: Held; after: Held },
      samples.at(-1) as { after: Held },
    ];
    // Each worker has 64 MiB, in a much larger reservation of addresses, and an engine with two threads.
    expect(settled.during.ownMiB - settled.after.ownMiB).toBeGreaterThan(64);
    expect(last.after.ownMiB - settled.after.ownMiB).toBeLessThan(32);
    expect(last.after.spaceMiB - settled.after.spaceMiB).toBeLessThan(1024);
    expect(last.after.threads).toBeLessThan(settled.after.threads + 2);
  },
);
