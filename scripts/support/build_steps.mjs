// The set-up steps that every entry shares: system packages, Node packages, native build, TypeScript build. Each does nothing when
// its result is already up to date.
import { createHash } from 'node:crypto';
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { dirname } from 'node:path';
import { buildArguments, configureArguments } from './cmake_js.mjs';
import { findOneDnn } from './onednn.mjs';
import { kNoNetwork, readLog } from './packages.mjs';
import { inRoot, root, runLogged, runVisible, SetupError } from './shell.mjs';
import { checkSpace } from './space.mjs';

/** Free disk space that the steps need, in megabytes. */
const kMegabytes = { nodePackages: 450, native: 200 };

/** Runs work unless stamp already holds the key; writes the key when it succeeded. */
async function unlessStamped(stamp, key, work) {
  if (existsSync(stamp) && readFileSync(stamp, 'utf8') === key) return 'up to date';
  await work();
  mkdirSync(dirname(stamp), { recursive: true });
  writeFileSync(stamp, key);
  return 'done';
}

function hashOf(text) {
  return createHash('sha256').update(text).digest('hex');
}

/** The retry settings of npm, which by itself waits for minutes before it reports that there is no network. */
const kRetries = [
  ...['--fetch-retries=2', '--fetch-retry-mintimeout=1000', '--fetch-retry-maxtimeout=8000'],
  ...['--fetch-timeout=120000', '--prefer-offline'],
];

/** Runs `npm ci --ignore-scripts`, and again only when the lockfile has changed since. */
export async function ensureNodePackages() {
  const key = hashOf(readFileSync(inRoot('package-lock.json')));
  return unlessStamped(inRoot('node_modules', '.balora-lock'), key, async () => {
    checkSpace(root, kMegabytes.nodePackages, 'npm ci');
    const npm = process.env.npm_execpath; // npm's own file when an npm script runs this
    const [command, first] = npm?.endsWith('.js') ? [process.execPath, [npm]] : ['npm', []];
    const flags = ['--ignore-scripts', '--no-audit', '--no-fund', ...kRetries];
    try {
      await runLogged('npm-ci', command, [...first, 'ci', ...flags]);
    } catch (error) {
      throw new SetupError(npmTrouble(readLog('npm-ci')) ?? error.message);
    }
  });
}

/** A sentence for a person about a network or a disk that failed, by npm's log; null where the failure is something else. */
export function npmTrouble(log) {
  if (/\bENOSPC\b/.test(log)) return 'npm ci: the disk is full. Free space and run this again.';
  const network =
    /\b(ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|EHOSTUNREACH|ENETUNREACH|ERR_SOCKET_TIMEOUT)\b/;
  const lines = log
    .split('\n')
    .filter((text) => /npm (error|ERR!)/.test(text) && network.test(text));
  const line = lines.find((text) => text.includes('request to')) ?? lines[0];
  return line === undefined
    ? null
    : `npm could not fetch the Node packages:\n  ${line.trim()}\n${kNoNetwork}`;
}

/**
 * Configures build/OUT with CMake. Warnings are errors where CI=true only: another version of the compiler than those that were
 * tried may know more of them.
 * @param out folder below build/
 * @param defines CMake cache entries, as NAME=VALUE
 */
export async function configureNative({ out, defines = [] }) {
  const strict = process.env.CI === 'true' ? ['BALORA_WERROR=ON'] : [];
  const oneDnn = `BALORA_ONEDNN_ROOT=${findOneDnn().root}`;
  const configure = configureArguments(out, [oneDnn, ...strict, ...defines]);
  await runLogged(`cmake-${out}`, process.execPath, configure);
}

/**
 * Configures and builds with CMake; the build tool itself knows what is stale.
 * @param out folder below build/
 * @param targets CMake targets, all when empty
 * @param defines CMake cache entries, as NAME=VALUE
 */
export async function buildNative({ out = 'release', targets = [], defines = [] } = {}) {
  // An existing build needs next to no space.
  if (!existsSync(inRoot('build', out, 'CMakeCache.txt')))
    checkSpace(root, kMegabytes.native, 'the native build');
  await configureNative({ out, defines });
  if (runVisible(process.execPath, buildArguments(out, targets)) !== 0) {
    throw new SetupError(
      `The native build failed. If the first error above is not in your own changes, remove build/${out} and run this again.`,
    );
  }
  return 'done';
}

/** Everything the compiled library depends on, as one key. */
function typeScriptKey() {
  const inputs = ['package-lock.json', 'tsconfig.json', 'tsconfig.build.json'];
  for (const name of readdirSync(inRoot('lib'), { recursive: true })) {
    if (name.endsWith('.ts')) inputs.push(`lib/${name}`);
  }
  const states = inputs.sort().map((name) => {
    const { mtimeMs, size } = statSync(inRoot(name));
    return `${name} ${mtimeMs} ${size}`;
  });
  return hashOf(states.join('\n'));
}

/**
 * Runs tsc into dist/, and again only when a source or a configuration has changed.
 * @param check false: emit without type check, for test programs that run the compiled library
 */
export async function ensureTypeScript({ check = true } = {}) {
  const stamp = inRoot('dist', '.inputs');
  const key = typeScriptKey();
  const present = existsSync(stamp) ? readFileSync(stamp, 'utf8') : '';
  if (present === key || (!check && present === `unchecked ${key}`)) return 'up to date';
  const fresh = inRoot('build', 'dist'); // swapped in at the end: a reader never sees half of it
  rmSync(fresh, { recursive: true, force: true });
  const tsc = inRoot('node_modules', 'typescript', 'bin', 'tsc');
  const flags = ['-p', 'tsconfig.build.json', '--outDir', fresh, ...(check ? [] : ['--noCheck'])];
  if (runVisible(process.execPath, [tsc, ...flags]) !== 0) {
    throw new SetupError('The TypeScript build failed: mend the errors above and run this again.');
  }
  writeFileSync(inRoot('build', 'dist', '.inputs'), check ? key : `unchecked ${key}`);
  // The command is made executable here, because npx does that only once, even if another build follows.
  chmodSync(inRoot('build', 'dist', 'cli', 'main.js'), 0o755);
  rmSync(inRoot('dist'), { recursive: true, force: true });
  renameSync(fresh, inRoot('dist'));
  return 'done';
}
