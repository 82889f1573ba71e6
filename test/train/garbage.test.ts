/** lib/train/garbage.ts: what nothing holds is gone at once, on the main thread and on a worker's. */
import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import { expect, it } from 'vitest';
import { collectGarbage } from '../../lib/train/garbage.ts';

/** Whether an object that nothing holds outlives `collect`. */
async function outlives(collect: () => Promise<void>): Promise<boolean> {
  const made = (() => new WeakRef({ held: 'by nothing' }))();
  // A weak reference holds its object until the turn is over.
  await new Promise((resolve) => setTimeout(resolve, 0));
  await collect();
  return made.deref() !== undefined;
}

it('collects what nothing holds, twice as well as once', async () => {
  expect(await outlives(async () => {})).toBe(true);
  expect(await outlives(collectGarbage)).toBe(false);
  expect(await outlives(collectGarbage)).toBe(false);
});

it('collects in a worker thread', async () => {
  const module = new URL('../../dist/train/garbage.js', import.meta.url).href;
  const text = `
    const { parentPort } = require('node:worker_threads');
    const made = (() => new WeakRef({}))();
    setTimeout(async () => {
      const { collectGarbage } = await import(${JSON.stringify(module)});
      await collectGarbage();
      parentPort.postMessage(made.deref() === undefined);
    });`;
  const worker = new Worker(text, { eval: true });
  expect(await once(worker, 'message')).toEqual([true]);
  await worker.terminate();
});
