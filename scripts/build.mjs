// Builds the parts of the package, without set-up: `native` (CMake, build/release), `ts` (tsc, dist/), default both; and `cuda`,
// the plug-in for NVIDIA GPUs (build/cuda/balora_cuda.so), with nvcc.
import { buildNative, ensureTypeScript } from './support/build_steps.mjs';
import { buildCuda, nvccAdvice, nvccMissing } from './support/cuda_build.mjs';
import { main, SetupError, say } from './support/shell.mjs';

async function cuda() {
  const reason = nvccMissing();
  if (reason) throw new SetupError(`The CUDA plug-in cannot be built: ${nvccAdvice(reason)}`);
  await buildCuda();
}

await main(async ([what = 'all']) => {
  if (!['native', 'ts', 'all', 'cuda'].includes(what)) {
    throw new SetupError(`usage: node scripts/build.mjs [native|ts|all|cuda], got ${what}`);
  }
  if (what === 'cuda') return cuda();
  if (what !== 'ts') await buildNative();
  if (what !== 'native') say(`TypeScript: ${await ensureTypeScript()}`);
});
