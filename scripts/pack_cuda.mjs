// `npm run pack:cuda`: everything that `test:cuda` and `bench:cuda` need on a machine that has an NVIDIA driver but no
// Node, no compiler and no network, in one file: build/cuda-pack.tar.xz (below 60 MB). There:
//
//   tar xJf cuda-pack.tar.xz && sh balora-cuda/run.sh [--output FOLDER] [--torch PYTHON] [--seconds N]
import { spawnSync } from 'node:child_process';
import { chmodSync, cpSync, existsSync, mkdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { buildNative, ensureTypeScript } from './support/build_steps.mjs';
import { cudaPlugin } from './support/cuda.mjs';
import { capture, inRoot, main, root, runVisible, SetupError, say } from './support/shell.mjs';

const kLimit = 60e6;
const kFiles = [
  ...['package.json', 'dist', 'scripts', 'bench/cuda', 'bench/torch', 'prebuilds'],
  ...['expected.json', 'expected.safetensors', 'inputs.safetensors', 'model'].map(
    (name) => `test/fixtures/architectures/llama-untied-gqa/${name}`,
  ),
];

const kRun = `#!/bin/sh
# Correctness, then speed, all of it within --seconds (default 460; a part that does not fit is skipped by name). The report is
# left in the folder given with --output (default build/cuda-report).
#   run.sh [--output FOLDER] [--torch PYTHON] [--seconds N] [--device NAME] [--shapes tiny]
begun=$(date +%s)
seconds=460
python=python3
torch=
previous=
for argument in "$@"; do
  case "$previous" in
    --seconds) seconds=$argument ;;
    --torch) python=$argument torch=$argument ;;
    --output) output=$(realpath -m "$argument") ;;
    --device) device=$argument ;;
    --shapes) shapes=$argument ;;
  esac
  previous=$argument
done
cd "$(dirname "$0")" || exit 1
export BALORA_BINARY="$PWD/prebuilds/linux-x64/balora.node"
# cuBLAS of the machine's own, or as pip's wheels have it beside torch: site-packages/nvidia/*/lib
wheels=$("$python" -c 'import glob, sys
print(":".join(d for p in sys.path if p for d in sorted(glob.glob(p + "/nvidia/*/lib"))))' 2>/dev/null)
export LD_LIBRARY_PATH="$wheels\${wheels:+:}$LD_LIBRARY_PATH"
set -- --output "\${output:-$PWD/build/cuda-report}" --device "\${device:-cuda}" --shapes "\${shapes:-all}"
# Less than half of the time tells whether the numbers are right.
./node scripts/test_cuda.mjs "$@" --seconds $((seconds * 2 / 5))
tested=$?
left=$((seconds - $(date +%s) + begun))
[ "$left" -gt 0 ] || left=1
./node scripts/bench_cuda.mjs "$@" --seconds "$left" \${torch:+--torch "$torch"} || exit 1
exit $tested
`;

/** Folders of the packages that the library needs at run time. */
function runtimePackages() {
  const listed = capture('npm', ['ls', '--omit=dev', '--all', '--parseable']);
  if (listed === null) throw new SetupError('npm ls failed: run "npm run setup" first.');
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
  rmSync(join(folder, 'prebuilds', 'linux-x64', 'balora_cuda.so'), { force: true }); // once is enough
  copy(cudaPlugin(), 'build/cuda/balora_cuda.so');
  copy(inRoot('build', 'release', 'balora_device_tests'), 'build/release/balora_device_tests');
  for (const file of ['node', 'build/cuda/balora_cuda.so', 'build/release/balora_device_tests']) {
    spawnSync('strip', ['--strip-debug', join(folder, file)]);
  }
  writeFileSync(join(folder, 'run.sh'), kRun);
  chmodSync(join(folder, 'run.sh'), 0o755);
}

await main(async () => {
  if (!existsSync(cudaPlugin())) return 1;
  await ensureTypeScript({ check: false });
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
  if (runVisible('tar', flags) !== 0) throw new SetupError('tar failed (is xz installed?)');
  const { size } = statSync(file);
  say(`${file}: ${(size / 1e6).toFixed(1)} MB`);
  if (size <= kLimit) return 0;
  throw new SetupError(`${file} has ${size} bytes, more than the ${kLimit} that may travel`);
});
