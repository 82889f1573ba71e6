// Builds what the package is made of, no set-up: `native` (CMake, build/release), `ts` (tsc, dist/), default both.
import { buildNative, ensureTypeScript } from './support/build_steps.mjs';
import { main, SetupError, say } from './support/shell.mjs';

await main(async ([what = 'all']) => {
  if (!['native', 'ts', 'all'].includes(what)) {
    throw new SetupError(`usage: node scripts/build.mjs [native|ts|all], got ${what}`);
  }
  if (what !== 'ts') await buildNative();
  if (what !== 'native') say(`TypeScript: ${await ensureTypeScript()}`);
});
