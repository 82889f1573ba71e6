// Puts the release addon and the shared libraries it needs beyond the C and C++ runtimes into prebuilds/PLATFORM-ARCH/, the folder
// that the published package carries. The addon's RUNPATH is $ORIGIN, so the copies beside it win over the system's. Every library
// that is copied, or linked into the addon, is accompanied by its licence. The CUDA plug-in is copied where it is built (npm run
// build:cuda) and no older than its sources; it needs nothing on a machine without a GPU, where it is never opened.
import { spawnSync } from 'node:child_process';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  statSync,
} from 'node:fs';
import { basename, join } from 'node:path';
import { buildNative } from './support/build_steps.mjs';
import { parseCache } from './support/cmake_cache.mjs';
import { newerSource } from './support/cuda_build.mjs';
import { oneDnnLicences } from './support/onednn.mjs';
import { capture, inRoot, main, SetupError, say, yellow } from './support/shell.mjs';

// Every machine that runs Node has these, and two copies of them in one process would clash.
const kSystem = /^(linux-vdso|ld-linux.*|lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s))\.so/;

/** The shared libraries that a binary needs, transitively: [name the loader asks for, file] of each. */
function sharedLibraries(binary) {
  const text = capture('ldd', [binary]);
  if (text === null) {
    throw new SetupError(
      `ldd cannot read ${binary}: install ldd, or build again with "npm run build".`,
    );
  }
  const missing = text.match(/^.*not found.*$/m);
  if (missing) {
    throw new SetupError(
      `${binary} needs a library that this machine lacks: ${missing[0].trim()}. Install it, or remove build/release and build again.`,
    );
  }
  return [...text.matchAll(/^\s*(\S+) => (\/\S+)/gm)]
    .map(([, name, path]) => [name, path])
    .filter(([name]) => !kSystem.test(name));
}

/** The licence text that Debian keeps for the package a library came from; null elsewhere. */
function copyrightOf(path) {
  for (const candidate of [path, realpathSync(path), realpathSync(path).replace(/^\/usr/, '')]) {
    const owner = capture('dpkg', ['-S', candidate])?.split(':')[0];
    const copyright = `/usr/share/doc/${owner}/copyright`;
    if (owner && existsSync(copyright)) return copyright;
  }
  return null;
}

/** Copies a library's licence texts into the folder, or says that there are none. */
function copyLicences(folder, name, path) {
  const [base] = name.split('.');
  const copyright = copyrightOf(path);
  const own = base === 'libdnnl' ? () => oneDnnLicences(path) : () => [];
  const licences = copyright ? [[`${base}.copyright.txt`, copyright]] : own();
  for (const [copy, text] of licences) copyFileSync(text, join(folder, copy));
  if (licences.length > 0) return;
  say(yellow(`no licence text for ${path} was found: put one into ${folder} before you publish`));
}

/** Copies a shared library that the addon needs. */
function copyLibrary(folder, name, path) {
  copyFileSync(realpathSync(path), join(folder, name));
  copyLicences(folder, name, path);
  const megabytes = (statSync(join(folder, name)).size / 1e6).toFixed(1);
  say(`${name} (${megabytes} MB) from ${path}`);
}

/** The archive of a oneDNN that is linked into the addon; null where it is a shared library. */
function staticOneDnn() {
  const cache = parseCache(readFileSync(inRoot('build', 'release', 'CMakeCache.txt'), 'utf8'));
  return cache.ONEDNN_LIBRARY?.endsWith('.a') ? cache.ONEDNN_LIBRARY : null;
}

/** Copies the CUDA plug-in into the folder, and returns a note on the result. */
function copyCudaPlugin(folder) {
  const plugin = inRoot('build', 'cuda', 'balora_cuda.so');
  const how = 'to include it, run "npm run build:cuda" and this again';
  if (!existsSync(plugin)) return `without the CUDA plug-in, which is not built: ${how}`;
  const newer = newerSource(plugin);
  if (newer) return `without the CUDA plug-in, which is older than ${newer}: ${how}`;
  const copy = join(folder, basename(plugin));
  copyFileSync(plugin, copy);
  spawnSync('strip', ['--strip-debug', copy]);
  return `balora_cuda.so (${(statSync(copy).size / 1e6).toFixed(1)} MB) from ${plugin}`;
}

await main(async () => {
  if (process.platform !== 'linux') {
    throw new SetupError(
      `UnsupportedPlatform: packages are made on Linux alone, this is ${process.platform}: run this on Linux.`,
    );
  }
  await buildNative({ targets: ['balora'] });
  const folder = inRoot('prebuilds', `${process.platform}-${process.arch}`);
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  const binary = join(folder, 'balora.node');
  copyFileSync(inRoot('build', 'release', 'balora.node'), binary);
  spawnSync('strip', ['--strip-debug', binary]);
  for (const [name, path] of sharedLibraries(binary)) copyLibrary(folder, name, path);
  const archive = staticOneDnn();
  if (archive) {
    copyLicences(folder, basename(archive), archive);
    say(`oneDNN is in the addon, from ${archive}`);
  }
  say(copyCudaPlugin(folder));
  say(folder);
});
