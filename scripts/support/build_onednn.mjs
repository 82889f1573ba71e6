// Builds oneDNN from source, once, into the user's cache: for systems where it is too old or missing, and for packages that are to
// carry it. The system is not changed, and no half-built folder stays.
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { availableParallelism } from 'node:os';
import { dirname, join } from 'node:path';
import { chooseCompiler } from './compiler.mjs';
import { withLock } from './lock.mjs';
import { kDebianKeys, kOneDnnFlags, kOneDnnVersion, oneDnnCache, unusedSource } from './onednn.mjs';
import { capture, has, runLogged, SetupError, say } from './shell.mjs';
import { checkSpace } from './space.mjs';
import { endGroup, makeWhole } from './whole.mjs';

/** Debian 13's source package, signed by Debian, through the mirror that this machine uses. */
export const kDebianSource = {
  suite: 'trixie',
  package: `onednn=${kOneDnnVersion}+ds-2`,
  file: `onednn_${kOneDnnVersion}+ds.orig.tar.xz`,
  sha256: '0cc51ca26c1af6a2bb1e71e378e7046f3ceb3e71791ee9d4e246d50f904a6ea6',
};
/** The project's own archive, for systems without apt or Debian's keys. */
export const kRelease = {
  url: `https://github.com/uxlfoundation/oneDNN/archive/refs/tags/v${kOneDnnVersion}.tar.gz`,
  file: `oneDNN-${kOneDnnVersion}.tar.gz`,
  sha256: '21068e8cd2bf4077916bf31452eab5ac9998e620e1b22630a88f79c334857a5c',
};
const kDefaultMirror = 'http://deb.debian.org/debian';
const kCpuMinutes = 19; // 245 objects by GCC 12 on a busy Xeon
const kMegabytes = 400; // of sources, objects and archive at the most

/** Checks that a file is the expected archive, and throws where it is not. */
export function checkArchive(path, sha256) {
  const found = createHash('sha256').update(readFileSync(path)).digest('hex');
  if (found === sha256) return;
  const bytes = statSync(path).size;
  throw new SetupError(
    `${path} is damaged or not what it should be: ${bytes} bytes with SHA-256 ${found}, expected ${sha256}.`,
  );
}

/** The Debian mirror of this machine's apt, or Debian's default. */
export function mirrorOf(targets) {
  const uris = (targets ?? '').split('\n').filter((uri) => /\/debian\/?$/.test(uri));
  return uris[0]?.replace(/\/$/, '') ?? kDefaultMirror;
}

/** Fetches Debian's source package with a configuration of apt's own in the folder, and returns the archive's path. */
async function fetchFromDebian(folder) {
  for (const part of ['state/lists/partial', 'cache/archives/partial', 'etc']) {
    mkdirSync(join(folder, 'apt', part), { recursive: true });
  }
  const at = (...parts) => join(folder, 'apt', ...parts);
  const mirror = mirrorOf(capture('apt-get', ['indextargets', '--format', '$(REPO_URI)']));
  writeFileSync(
    at('etc', 'sources.list'),
    `deb-src [signed-by=${kDebianKeys}] ${mirror} ${kDebianSource.suite} main\n`,
  );
  const set = {
    'Dir::Etc::SourceList': at('etc', 'sources.list'),
    'Dir::Etc::SourceParts': '/dev/null',
    'Dir::Etc::Preferences': '/dev/null',
    'Dir::Etc::PreferencesParts': '/dev/null',
    'Dir::State': at('state'),
    'Dir::Cache': at('cache'),
    'APT::Sandbox::User': 'root', // the folder is the user's own, which _apt cannot enter
    'Acquire::Retries': '2',
  };
  const options = Object.entries(set).flatMap(([key, value]) => ['-o', `${key}=${value}`]);
  const place = { cwd: folder };
  await runLogged('onednn-apt-update', 'apt-get', [...options, 'update', '-q'], place);
  const fetch = [...options, 'source', '-q', '--download-only', kDebianSource.package];
  await runLogged('onednn-apt-source', 'apt-get', fetch, place);
  const path = join(folder, kDebianSource.file);
  checkArchive(path, kDebianSource.sha256);
  return path;
}

/** Fetches the project's release archive, and returns its path. */
async function fetchRelease(folder) {
  const path = join(folder, kRelease.file);
  // The command is curl, which uses the environment's proxies; Node's fetch does not.
  const [command, args] = has('curl')
    ? ['curl', ['-fsSL', '--retry', '2', '-o', path, kRelease.url]]
    : ['wget', ['-q', '-O', path, kRelease.url]];
  await runLogged('onednn-release', command, args);
  checkArchive(path, kRelease.sha256);
  return path;
}

/** Fetches the source archive from Debian where the machine can, otherwise from the project. */
export async function fetchSource(folder, archive) {
  if (archive) {
    checkArchive(archive, archive.endsWith('.xz') ? kDebianSource.sha256 : kRelease.sha256);
    return archive;
  }
  const ways = [
    ...(has('apt-get') && existsSync(kDebianKeys) ? [fetchFromDebian] : []),
    ...(has('curl') || has('wget') ? [fetchRelease] : []),
  ];
  const failures = [];
  for (const way of ways) {
    try {
      return await way(folder);
    } catch (error) {
      if (!(error instanceof SetupError)) throw error;
      failures.push(error.message);
    }
  }
  const said =
    failures.length > 0
      ? failures.join('\n')
      : "neither apt-get with Debian's keys nor curl nor wget is here";
  throw new SetupError(
    `oneDNN's source could not be had:\n${said}\nFetch ${kRelease.url} by hand and name it: npm run setup -- --build-onednn=${kRelease.file}`,
  );
}

/** Runs `cmake --build`, and shows its progress on one line. */
async function buildWithProgress(folder, signal) {
  const jobs = String(availableParallelism());
  const child = spawn('cmake', ['--build', folder, '--target', 'install', '--parallel', jobs], {
    ...{ stdio: ['ignore', 'pipe', 'pipe'], detached: true },
  });
  signal.addEventListener('abort', () => endGroup(child), { once: true });
  const started = performance.now();
  let last = '';
  let shown = -1;
  const read = (chunk) => {
    last = (last + chunk).slice(-20_000);
    const share = progressOf(last);
    const step = process.stdout.isTTY ? 1 : 10;
    if (share === null || share < shown + step) return;
    shown = share;
    const minutes = ((performance.now() - started) / 60_000).toFixed(1);
    const text = `      oneDNN: ${share}% after ${minutes} min`;
    process.stdout.write(process.stdout.isTTY ? `\r${text}` : `${text}\n`);
  };
  child.stdout.setEncoding('utf8').on('data', read);
  child.stderr.setEncoding('utf8').on('data', read);
  const status = await new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('close', resolve);
  });
  if (process.stdout.isTTY) say('');
  if (status === 0) return;
  const tail = last.trimEnd().split('\n').slice(-25).join('\n');
  throw new SetupError(`oneDNN's build failed (${status ?? 'killed'}).\n${tail}`);
}

/** The last percentage that ninja's [n/m] or make's [ n%] gives; null before the first. */
export function progressOf(text) {
  const all = [...text.matchAll(/^\[ *(?:(\d+)\/(\d+)|(\d+)%)\]/gm)];
  const [, done, of, percent] = all.at(-1) ?? [];
  if (percent !== undefined) return Number(percent);
  return done === undefined ? null : Math.floor((100 * Number(done)) / Number(of));
}

/** The C compiler that belongs to a C++ compiler, such as gcc-12 for g++-12; null where the name does not show it. */
export function cCompilerOf(command) {
  const found = command.match(/^(.*\/)?(c|g|clang)\+\+(-\d+)?$/);
  if (!found) return null;
  const [, folder = '', name, version = ''] = found;
  return `${folder}${{ c: 'cc', g: 'gcc', clang: 'clang' }[name]}${version}`;
}

/** Removes the sources that only unused primitives need, before CMake lists what is there. */
export function removeUnused(source) {
  const folder = join(source, 'src');
  const unused = readdirSync(folder, { recursive: true }).filter(unusedSource);
  for (const name of unused) rmSync(join(folder, name));
}

async function build(work, archive, signal) {
  const path = await fetchSource(work, archive);
  const source = join(work, 'source');
  mkdirSync(source);
  await runLogged('onednn-unpack', 'tar', ['-xf', path, '-C', source, '--strip-components=1']);
  if (process.arch === 'x64') removeUnused(source);
  const { compiler, problem } = chooseCompiler();
  if (!compiler) throw new SetupError(`C++ compiler: ${problem}.`);
  const folder = join(work, 'build');
  const set = [
    ...[...kOneDnnFlags, `CMAKE_INSTALL_PREFIX=${join(work, 'installed')}`],
    `CMAKE_CXX_COMPILER=${compiler.command}`,
  ];
  const c = cCompilerOf(compiler.command);
  if (c && has(c)) set.push(`CMAKE_C_COMPILER=${c}`);
  await runLogged('onednn-cmake', 'cmake', [
    ...['-S', source, '-B', folder, ...(has('ninja') ? ['-G', 'Ninja'] : [])],
    ...set.map((each) => `-D${each}`),
  ]);
  await buildWithProgress(folder, signal);
}

/**
 * Builds oneDNN into the cache unless it is there.
 * @param archive a source archive that was fetched by hand
 * @returns its folder, for BALORA_ONEDNN_ROOT
 */
export async function ensureOneDnn({ archive = null } = {}) {
  const folder = oneDnnCache();
  if (existsSync(folder)) return folder;
  return withLock(`${folder}.lock`, async () => {
    if (existsSync(folder)) return folder;
    checkSpace(dirname(folder), kMegabytes, 'the build of oneDNN');
    const minutes = Math.ceil(kCpuMinutes / availableParallelism());
    say(
      `      oneDNN ${kOneDnnVersion} is built from source, once: about ${minutes} minutes on this idle machine`,
    );
    await makeWhole(folder, 'installed', (part, signal) => build(part, archive, signal));
    return folder;
  });
}
