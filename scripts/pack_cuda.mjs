// Packs everything that `test:cuda` and `bench:cuda` need on a machine that has an NVIDIA driver but no Node, no compiler and no
// network into one file, build/cuda-pack.tar.xz (44.5 MB; below 60): `npm run pack:cuda`. On that machine:
//
//   tar xJf cuda-pack.tar.xz && sh balora-cuda/run.sh [--output FOLDER] [--torch PYTHON] [--seconds N]
import { spawnSync } from 'node:child_process';
import { chmodSync, cpSync, mkdirSync, rmSync, statSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { ensureBench } from './support/bench_build.mjs';
import { buildNative } from './support/build_steps.mjs';
import { cudaPlugin } from './support/cuda.mjs';
import { capture, inRoot, main, root, runVisible, SetupError, say } from './support/shell.mjs';

const kLimit = 60e6;
const kFiles = [
  ...['package.json', 'dist', 'scripts', 'bench/cuda', 'bench/torch', 'build/harness', 'prebuilds'],
  ...['expected.json', 'expected.safetensors', 'inputs.safetensors', 'model'].map(
    (name) => `test/fixtures/architectures/llama-untied-gqa/${name}`,
  ),
];

/** Folders of the packages that the library needs at run time. */
function runtimePackages() {
  const listed = capture('npm', ['ls', '--omit=dev', '--all', '--parseable']);
  if (listed === null) throw new SetupError('npm ls failed: run "npm run setup", then this again.');
  return listed
    .split('\n')
    .slice(1)
    .map((path) => relative(root, path));
}

function pack(folder) {
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  const copy = (from, to) => {
    mkdirSync(dirname(join(folder, to)), { recursive: true });
    cpSync(from, join(folder, to), { recursive: true, dereference: true });
  };
  for (const path of [...kFiles, ...runtimePackages()]) copy(inRoot(path), path);
  copy(process.execPath, 'node');
  rmSync(join(folder, 'prebuilds', 'linux-x64', 'balora_cuda.so'), { force: true }); // the plug-in is packed once, in build/cuda
  copy(cudaPlugin(), 'build/cuda/balora_cuda.so');
  copy(inRoot('build', 'release', 'balora_device_tests'), 'build/release/balora_device_tests');
  for (const file of ['node', 'build/cuda/balora_cuda.so', 'build/release/balora_device_tests']) {
    spawnSync('strip', ['--strip-debug', join(folder, file)]);
  }
  cpSync(inRoot('scripts', 'support', 'run_cuda.sh'), join(folder, 'run.sh'));
  chmodSync(join(folder, 'run.sh'), 0o755);
}

await main(async () => {
  cudaPlugin(); // a missing plug-in is an error before anything is built
  await ensureBench();
  await buildNative({ targets: ['balora', 'balora_device_tests'] });
  if (runVisible(process.execPath, [inRoot('scripts', 'prebuild.mjs')]) !== 0) return 1;
  const folder = inRoot('build', 'cuda-pack', 'balora-cuda');
  pack(folder);
  const file = inRoot('build', 'cuda-pack.tar.xz');
  const flags = [
    '-C',
    dirname(folder),
    '-cf',
    file,
    '--use-compress-program=xz -6 -T2',
    'balora-cuda',
  ];
  if (runVisible('tar', flags) !== 0) {
    throw new SetupError(
      'tar failed (see above): install xz if it is missing, then run this again.',
    );
  }
  const { size } = statSync(file);
  say(`${file}: ${(size / 1e6).toFixed(1)} MB`);
  if (size <= kLimit) return 0;
  throw new SetupError(
    `${file} has ${size} bytes, the limit is ${kLimit}: remove files from kFiles of scripts/pack_cuda.mjs.`,
  );
});
