// Building the CUDA plug-in with nvcc for all architectures, and what ptxas says of its kernels.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { parsePtxas } from './ptxas.mjs';
import { has, inRoot, root, runLogged, SetupError, say } from './shell.mjs';

/** Null where nvcc is, else the reason for going without. */
export function nvccMissing() {
  return has('nvcc') ? null : 'no nvcc on this machine';
}

export const kPtxasLog = inRoot('build', 'cuda', 'ptxas.log');

/**
 * Configures and builds build/cuda/balora_cuda.so; warnings are errors.
 * @returns the kernels of everything that was ever compiled in this folder, the latest of each
 */
export async function buildCuda() {
  const folder = inRoot('build', 'cuda');
  const fresh = !existsSync(inRoot('build', 'cuda', 'CMakeCache.txt'));
  const generator = fresh && has('ninja') ? ['-G', 'Ninja'] : [];
  const flags = [
    'CMAKE_BUILD_TYPE=Release',
    'BALORA_CUDA=ON',
    'BALORA_TESTS=OFF',
    'BALORA_ADDON=OFF',
  ];
  await runLogged('cmake-cuda', 'cmake', [
    ...['-S', root, '-B', folder, ...generator],
    ...flags.map((flag) => `-D${flag}`),
  ]);
  const jobs = String(Math.max(1, availableParallelism()));
  const build = ['--build', folder, '--target', 'balora_cuda', '--parallel', jobs];
  const { status, stdout, stderr } = spawnSync('cmake', build, {
    ...{ cwd: root, encoding: 'utf8', maxBuffer: 1 << 29, stdio: ['ignore', 'pipe', 'pipe'] },
  });
  const text = `${stdout ?? ''}${stderr ?? ''}`;
  if (status !== 0) {
    const told = text.split('\n').filter((line) => !line.includes('ptxas info'));
    throw new SetupError(`The CUDA build failed.\n${told.slice(-60).join('\n')}`);
  }
  // What is up to date says nothing: the log of the compilations before stays in front.
  const before = existsSync(kPtxasLog) ? readFileSync(kPtxasLog, 'utf8') : '';
  mkdirSync(folder, { recursive: true });
  writeFileSync(kPtxasLog, `${before}${text}`);
  const latest = new Map();
  for (const row of parsePtxas(`${before}${text}`)) {
    latest.set(`${row.kernel} ${row.architecture}`, row);
  }
  say(`${folder}/balora_cuda.so: ${latest.size} kernels`);
  return [...latest.values()];
}

/** A source of the plug-in that is newer than the file, as a path from the root; null where none is. */
export function newerSource(file) {
  const { mtimeMs } = statSync(file);
  const sources = ['cuda', 'native/kernels'].flatMap((folder) =>
    readdirSync(inRoot(folder))
      .filter((name) => /\.(cu|cuh|h|def)$/.test(name))
      .map((name) => `${folder}/${name}`),
  );
  return sources.find((path) => statSync(inRoot(path)).mtimeMs > mtimeMs) ?? null;
}

/** Kernels that may spill, by the beginning of their names, and why. */
const kMaySpill = [
  'head_losses: head_rows Id', // f64, for research: 216 bytes on sm_90, beside rows of 8 V bytes
];

/** The kernels that spill although they must not. */
export function forbiddenSpills(rows) {
  return rows.filter(
    ({ kernel, spilled }) => spilled > 0 && !kMaySpill.some((name) => kernel.startsWith(name)),
  );
}
