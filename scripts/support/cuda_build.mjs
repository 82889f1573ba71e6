// The build of the CUDA plug-in with nvcc for all architectures, and the limits on ptxas's figures for its kernels.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { buildArguments, configureArguments } from './cmake_js.mjs';
import { findOneDnn } from './onednn.mjs';
import { latestRows } from './ptxas.mjs';
import { has, inRoot, root, runLogged, SetupError, say } from './shell.mjs';

/** The message for a person who asked for nvcc, with a reason from {@link nvccMissing}. */
export const nvccAdvice = (reason) =>
  `${reason}. Install the CUDA toolkit and put the folder of nvcc on the PATH.`;

/** The reason why nvcc cannot be used; null where it exists. */
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
  const oneDnn = `BALORA_ONEDNN_ROOT=${findOneDnn().root}`;
  const defines = [oneDnn, 'BALORA_CUDA=ON', 'BALORA_TESTS=OFF', 'BALORA_ADDON=OFF'];
  await runLogged('cmake-cuda', process.execPath, configureArguments('cuda', defines));
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    buildArguments('cuda', ['balora_cuda']),
    {
      ...{ cwd: root, encoding: 'utf8', maxBuffer: 1 << 29, stdio: ['ignore', 'pipe', 'pipe'] },
    },
  );
  const text = `${stdout ?? ''}${stderr ?? ''}`;
  if (status !== 0) {
    const errors = text.split('\n').filter((line) => !line.includes('ptxas info'));
    const output = errors.slice(-60).join('\n');
    throw new SetupError(
      `The CUDA build failed.\n${output}\nMend the first error above and run npm run build:cuda again.`,
    );
  }
  // The log of earlier compilations stays in front, because files that are up to date print nothing.
  const before = existsSync(kPtxasLog) ? readFileSync(kPtxasLog, 'utf8') : '';
  mkdirSync(folder, { recursive: true });
  writeFileSync(kPtxasLog, `${before}${text}`);
  const rows = latestRows(`${before}${text}`);
  say(`${folder}/balora_cuda.so: ${rows.length} kernels`);
  return rows;
}

/** A source of the plug-in that is newer than the file, as a path from the root; null where none is. */
export function newerSource(file) {
  const { mtimeMs } = statSync(file);
  const sources = ['cuda', 'native/kernels'].flatMap((folder) =>
    readdirSync(inRoot(folder), { recursive: true })
      .filter((name) => /\.(cu|cuh|h|def)$/.test(name))
      .map((name) => `${folder}/${name}`),
  );
  return sources.find((path) => statSync(inRoot(path)).mtimeMs > mtimeMs) ?? null;
}

/** Kernels that may spill, by the beginning of their names, and why. */
const kMaySpill = [
  'head_rows: head_rows Id', // f64, for research: 580 bytes on sm_90, beside rows of 8 V bytes
];

const named =
  (names) =>
  ({ kernel }) =>
    names.some((name) => kernel.startsWith(name));

/** The kernels that spill although they must not. */
export function forbiddenSpills(rows) {
  const excused = named(kMaySpill);
  return rows.filter((row) => row.spilled > 0 && !excused(row));
}

/**
 * Most registers of a thread: 128 leave room for 16 warps of a multiprocessor's 48 or 64, which a kernel that waits for
 * memory needs.
 */
const kMostRegisters = 128;

/** Kernels that may use more registers, since they hold a tile or a row in them and hide their waiting behind it. */
const kMayHold = [
  'linear_sum: sum_products',
  ...['attention: forward', 'attention_backward: backward'],
  ...['attention_plain: forward_plain', 'attention_backward_plain: backward_plain'],
  ...['relative_attention: forward', 'relative_attention_backward: backward'],
  'gated: gated_gradients IL17balora_activation1Ed', // f64, for research: 204 registers on sm_90
];

/** Most static shared memory of a block, in bytes: three blocks fit on sm_86, which has 100 KiB. Larger tiles are dynamic. */
const kMostStaticShared = 26 << 10;

/** The kernels above the limits of registers and static shared memory, each with its figures. */
export function overLimits(rows) {
  const excused = named(kMayHold);
  return rows
    .filter(
      (row) => (row.registers > kMostRegisters && !excused(row)) || row.shared > kMostStaticShared,
    )
    .map(({ kernel, architecture, registers, shared }) => ({
      ...{ kernel, architecture },
      takes: `${registers} registers and ${shared} bytes of static shared memory`,
    }));
}
