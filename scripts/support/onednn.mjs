// The choice of the oneDNN for the native builds: the one that BALORA_ONEDNN_ROOT names, else the system's, else one that `npm run
// setup -- --build-onednn` has built into the user's cache (build_onednn.mjs).
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { dirname, join } from 'node:path';
import { chooseCompiler } from './compiler.mjs';
import { SetupError } from './shell.mjs';

/** The oldest oneDNN that native/kernels/cpu/products/onednn.cc supports; Ubuntu 22.04 has it. */
export const kOldestOneDnn = [2, 5];

/** The keys that Debian's archive is signed with, where a system has them. */
export const kDebianKeys = '/usr/share/keyrings/debian-archive-keyring.gpg';

/** The version that is built from source on request. */
export const kOneDnnVersion = '3.7.2';

/** CMake's options of that build: matrix products and reorders on the CPU, static, without what is only for tests. */
export const kOneDnnFlags = [
  'CMAKE_BUILD_TYPE=Release',
  'CMAKE_POSITION_INDEPENDENT_CODE=ON',
  'CMAKE_INSTALL_LIBDIR=lib',
  'ONEDNN_LIBRARY_TYPE=STATIC',
  'ONEDNN_CPU_RUNTIME=OMP',
  'ONEDNN_GPU_RUNTIME=NONE',
  'ONEDNN_ARCH_OPT_FLAGS=',
  'ONEDNN_BUILD_DOC=OFF',
  'ONEDNN_BUILD_EXAMPLES=OFF',
  'ONEDNN_BUILD_TESTS=OFF',
  'ONEDNN_BUILD_GRAPH=OFF',
  'ONEDNN_ENABLE_WORKLOAD=INFERENCE',
  'ONEDNN_ENABLE_PRIMITIVE=MATMUL;REORDER',
  'ONEDNN_ENABLE_JIT_PROFILING=OFF',
  'ONEDNN_ENABLE_ITT_TASKS=OFF',
];

const kOtherPrimitives =
  '((batch|group|instance|layer)_normalization|binary|concat|(de)?conv(olution)?|eltwise|inner_product|lrn|pool(ing)?|prelu|reduction|resampling|rnn|shuffle|softmax|sum)';
/**
 * Source files of oneDNN, below src/, that no linked code refers to: the options leave out the other primitives' code, but have all
 * their files compiled, each with most headers. A pattern that removes too much fails the link of the C++ tests (test/native). For
 * x64 only.
 */
const kUnusedSources = [
  `common/${kOtherPrimitives}`,
  `cpu/(x64/)?(?!(jit_)?gemm_inner_product_utils)(gemm|ip|jit|nchw|ncsp|nhwc|nspc|ref|simple)_(\\w+_)?${kOtherPrimitives}(_\\w+)?`,
  'cpu/(x64/)?(lrn|prelu|rnn|shuffle)/\\w+',
].map((pattern) => new RegExp(`^${pattern}\\.cpp$`));

/** Whether a source, by its path below oneDNN's src/, is of no use to balora. */
export const unusedSource = (name) => kUnusedSources.some((pattern) => pattern.test(name));

/** Folder of the user's cache that keeps what the scripts make once for all clones. */
export const cacheFolder = (env = process.env) =>
  join(env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'balora');

/** Folder that keeps that build, by version and flags, so that another of either is another folder. */
export function oneDnnCache(env = process.env) {
  const key = createHash('sha256')
    .update([...kOneDnnFlags, ...kUnusedSources].join('\n'))
    .digest('hex')
    .slice(0, 8);
  return join(cacheFolder(env), `onednn-${kOneDnnVersion}-${key}`);
}

/** The licence files that oneDNN's own install step puts beside the library, by their names in a package of balora. */
const kLicences = {
  'libdnnl.LICENSE.txt': 'LICENSE',
  'libdnnl.THIRD-PARTY-PROGRAMS.txt': 'THIRD-PARTY-PROGRAMS',
};

/**
 * The licence files of a oneDNN that is no package of the system.
 * @param library its libdnnl.a or libdnnl.so, in ROOT/lib or ROOT/lib64
 * @returns {[string, string][]} name in a package and path of each; throws where one is missing
 */
export function oneDnnLicences(library) {
  const folder = join(dirname(dirname(library)), 'share', 'doc', 'dnnl');
  return Object.entries(kLicences).map(([name, file]) => {
    const path = join(folder, file);
    if (existsSync(path)) return [name, path];
    throw new SetupError(
      `A package that carries ${library} must carry its licence: ${path} is not there. oneDNN's source has ${file} at its top: copy it there.`,
    );
  });
}

/** The version in the text of dnnl_version.h, such as [3, 7, 2]; null where the text has none. */
export function parseOneDnnVersion(text) {
  const numbers = ['MAJOR', 'MINOR', 'PATCH'].map(
    (part) => text?.match(new RegExp(`#define DNNL_VERSION_${part} (\\d+)`))?.[1],
  );
  return numbers.includes(undefined) ? null : numbers.map(Number);
}

const kHeader = 'oneapi/dnnl/dnnl_version.h';

/** The version of the oneDNN that is installed below a folder, or null. */
function versionBelow(root) {
  const header = join(root, 'include', kHeader);
  return existsSync(header) ? parseOneDnnVersion(readFileSync(header, 'utf8')) : null;
}

/** The version of the oneDNN on the compiler's default paths; null where there is none. */
function systemVersion() {
  const { compiler } = chooseCompiler();
  if (!compiler) return versionBelow('/usr') ?? versionBelow('/usr/local');
  const args = ['-E', '-dM', '-x', 'c++', '-include', kHeader, '/dev/null'];
  const { status, stdout } = spawnSync(compiler.command, args, { encoding: 'utf8' });
  return status === 0 ? parseOneDnnVersion(stdout) : null;
}

/** Whether a version is at least kOldestOneDnn. */
export function usable([major, minor]) {
  const [least, leastMinor] = kOldestOneDnn;
  return major > least || (major === least && minor >= leastMinor);
}

/**
 * The oneDNN to build with.
 * @returns {{ root: string, version: number[] | null, problem: string | null }} root: '' for the system's; problem: why it cannot
 *   be used, or null
 */
export function findOneDnn(env = process.env) {
  const named = env.BALORA_ONEDNN_ROOT;
  if (named) {
    const version = versionBelow(named);
    const problem =
      version === null
        ? `BALORA_ONEDNN_ROOT: ${join(named, 'include', kHeader)} is not there`
        : tooOld(version, `BALORA_ONEDNN_ROOT: ${named} is`);
    return { root: named, version, problem };
  }
  const version = systemVersion();
  if (version && usable(version)) return { root: '', version, problem: null };
  const cached = oneDnnCache(env);
  const built = versionBelow(cached);
  if (built) return { root: cached, version: built, problem: null };
  return { root: '', version, problem: version ? tooOld(version, 'this one is') : 'there is none' };
}

const tooOld = (version, who) => (usable(version) ? null : `${who} ${version.join('.')}`);

export const oneDnnProblem = () => findOneDnn().problem;
