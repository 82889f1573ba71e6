/**
 * Frees unreferenced tensors at once, so that tests that measure memory do not measure what earlier tests left to the collector.
 */
import { synchronize } from '../../lib/runtime.ts';
import { collect } from './collect.ts';

/**
 * Runs the garbage collector twice, since objects that a finalizer releases are found the second time, and waits for the engine.
 */
export async function collectGarbage(): Promise<void> {
  for (let pass = 0; pass < 2; pass++) {
    collect();
    await new Promise((resolve) => setImmediate(resolve));
  }
  await synchronize();
}
