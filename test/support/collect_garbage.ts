/** Frees what nobody refers to any more, now: tests that measure memory must not measure what others left for the collector. */
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { synchronize } from '../../lib/runtime.ts';

setFlagsFromString('--expose-gc');
const collect = runInNewContext('gc') as () => void;

/** Collects twice, since what a finalizer lets go of is found the second time, and waits for the engine. */
export async function collectGarbage(): Promise<void> {
  for (let pass = 0; pass < 2; pass++) {
    collect();
    await new Promise((resolve) => setImmediate(resolve));
  }
  await synchronize();
}
