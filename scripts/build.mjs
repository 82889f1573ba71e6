// Builds what the package is made of, no set-up: `native` (CMake, build/release), `ts` (tsc, dist/), default both; and
// `cuda`, the plug-in for NVIDIA GPUs (build/cuda/balora_cuda.so), with nvcc.
import { buildNative, ensureTypeScript } from './support/build_steps.mjs';
import { has, main, SetupError, say } from './support/shell.mjs';

/** The plug-in alone: addon and C++ tests are those of build/release. */
async function buildCuda() {
  if (!has('nvcc') && !process.env.CUDACXX) {
    throw new SetupError('There is no nvcc: put it on the PATH, or name it in CUDACXX.');
  }
  const defines = ['BALORA_CUDA=ON', 'BALORA_ADDON=OFF', 'BALORA_TESTS=OFF'];
  await buildNative({ out: 'cuda', targets: ['balora_cuda'], defines });
}

await main(async ([what = 'all']) => {
  if (!['native', 'ts', 'all', 'cuda'].includes(what)) {
    throw new SetupError(`usage: node scripts/build.mjs [native|ts|all|cuda], got ${what}`);
  }
  if (what === 'cuda') return buildCuda();
  if (what !== 'ts') await buildNative();
  if (what !== 'native') say(`TypeScript: ${await ensureTypeScript()}`);
});
