// The needs of the native build, and the tools of the checks, each with the name of its package by package manager.
import { spawnSync } from 'node:child_process';
import { existsSync, realpathSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { aptCompiler, chooseCompiler, kAptCompilers } from './compiler.mjs';
import { rootProblem } from './debian_root.mjs';
import { kDebianKeys, kOldestOneDnn, oneDnnProblem } from './onednn.mjs';
import { capture, has } from './shell.mjs';

export const kClangFormat = 18; // major versions format differently, and the project uses this one

/** The folder with node_api.h beside this Node or in the system; null when there is none. */
export function nodeHeaders() {
  const prefix = dirname(dirname(realpathSync(process.execPath)));
  const folders = [join(prefix, 'include', 'node'), '/usr/include/node', '/usr/local/include/node'];
  return folders.find((folder) => existsSync(join(folder, 'node_api.h'))) ?? null;
}

/** Version numbers in a text: [3, 22] for 'cmake version 3.22.1'. */
export function versionOf(text) {
  return (text?.match(/\d+(?:\.\d+)+/)?.[0] ?? '').split('.').map(Number);
}

/** Whether a version, as numbers, is at least the other. */
export function atLeast(version, least) {
  for (let i = 0; i < least.length; ++i) {
    const [has, wants] = [version[i] ?? 0, least[i]];
    if (has !== wants) return has > wants;
  }
  return true;
}

const kOldestCMake = [3, 22];

function cmakeProblem() {
  const text = capture('cmake', ['--version']);
  if (text === null) return 'there is none';
  const version = versionOf(text);
  return atLeast(version, kOldestCMake) ? null : `this one is ${version.join('.')}`;
}

function headerProblem(path) {
  const folders = ['/usr/include', '/usr/local/include', '/opt/homebrew/include'];
  return folders.some((folder) => existsSync(join(folder, path))) ? null : 'there is none';
}

/** The reason why OpenMP is missing, or null: clang needs one of its own, and GCC's comes with it. */
function openMpProblem() {
  const { compiler } = chooseCompiler();
  if (!compiler || compiler.family === 'gcc') return null;
  const args = ['-fopenmp', '-x', 'c++', '-fsyntax-only', '-include', 'omp.h', '/dev/null'];
  return spawnSync(compiler.command, args, { stdio: 'ignore' }).status === 0
    ? null
    : `${compiler.command} finds no omp.h`;
}

/** The newest run-clang-tidy of this machine; every version has the checks that are used. */
export function clangTidy() {
  const names = [
    'run-clang-tidy',
    ...[22, 21, 20, 19, 18, 17, 16, 15, 14].map((n) => `run-clang-tidy-${n}`),
  ];
  return names.find((name) => has(name, ['--help'])) ?? null;
}

const every = (name) => ({ apt: [name], dnf: [name], pacman: [name], apk: [name] });

/** The package of apt where apt's version is new enough: 1:2.6.3-1 is version 2.6 behind an epoch. */
const aptAtLeast =
  (name, least) =>
  ({ [name]: version }) =>
    version && atLeast(versionOf(version.replace(/^\d+:/, '')), least) ? [name] : null;

/**
 * The needs by id: its name for a person, why it is not met (null where it is), whether it would be of no use here, and its packages.
 * `apt` may be a function of the versions that apt has of the `candidates`, by name; it gives null where none of them is suitable.
 */
const kNeeds = {
  make: {
    what: 'make',
    problem: () => (has('make') || has('ninja') ? null : 'there is none'),
    packages: every('make'),
  },
  compiler: {
    what: 'a C++ compiler',
    problem: () => chooseCompiler().problem,
    packages: { apt: aptCompiler, dnf: ['gcc-c++'], pacman: ['gcc'], apk: ['clang', 'g++'] },
    candidates: kAptCompilers,
  },
  openmp: {
    what: 'OpenMP for clang',
    problem: openMpProblem,
    packages: {
      apt: ['libomp-dev'],
      dnf: ['libomp-devel'],
      pacman: ['openmp'],
      apk: ['openmp-dev'],
    },
  },
  cmake: {
    what: `CMake ${kOldestCMake.join('.')} or newer`,
    problem: cmakeProblem,
    packages: { ...every('cmake'), apt: aptAtLeast('cmake', kOldestCMake) },
    candidates: ['cmake'],
  },
  onednn: {
    what: `oneDNN ${kOldestOneDnn.join('.')} or newer`,
    problem: oneDnnProblem,
    packages: {
      apt: aptAtLeast('libdnnl-dev', kOldestOneDnn),
      dnf: ['onednn-devel'],
      pacman: ['onednn'],
      apk: ['onednn-dev'],
    },
    candidates: ['libdnnl-dev'],
  },
  eigen: {
    what: 'Eigen 3.4 or newer',
    problem: () => headerProblem('eigen3/Eigen/Core'),
    packages: {
      apt: ['libeigen3-dev'],
      dnf: ['eigen3-devel'],
      pacman: ['eigen'],
      apk: ['eigen-dev'],
    },
  },
  doctest: {
    what: 'doctest',
    problem: () => headerProblem('doctest/doctest.h'),
    packages: {
      apt: ['doctest-dev'],
      dnf: ['doctest-devel'],
      pacman: ['doctest'],
      apk: ['doctest-dev'],
    },
  },
  'clang-format': {
    what: `clang-format ${kClangFormat}`,
    problem: () => (has(`clang-format-${kClangFormat}`) ? null : 'there is none'),
    packages: {
      apt: [`clang-format-${kClangFormat}`],
      dnf: [`clang${kClangFormat}-tools-extra`],
      pacman: [`clang${kClangFormat}`],
      apk: [`clang${kClangFormat}-extra-tools`],
    },
  },
  'clang-tidy': {
    what: 'clang-tidy with run-clang-tidy',
    problem: () => (clangTidy() ? null : 'there is none'),
    packages: {
      apt: ['clang-tidy'],
      dnf: ['clang-tools-extra'],
      pacman: ['clang'],
      apk: ['clang-extra-tools'],
    },
  },
  debootstrap: {
    what: 'debootstrap with the keys of Debian',
    useless: () => rootProblem() !== null,
    problem: () => {
      if (!has('debootstrap')) return 'there is none';
      return existsSync(kDebianKeys) ? null : `${kDebianKeys} is not there`;
    },
    packages: {
      apt: ['debootstrap', 'debian-archive-keyring'],
      dnf: ['debootstrap', 'debian-keyring'],
      pacman: ['debootstrap', 'debian-archive-keyring'],
      apk: ['debootstrap', 'debian-archive-keyring'],
    },
  },
  python: {
    what: 'Python 3 (for node-gyp)',
    problem: () => (has('python3') ? null : 'there is none'),
    packages: { apt: ['python3'], dnf: ['python3'], pacman: ['python'], apk: ['python3'] },
  },
  'node-headers': {
    what: "Node's headers (for node-gyp)",
    problem: () => (nodeHeaders() ? null : 'there are none'),
    packages: {
      apt: ['libnode-dev'],
      dnf: ['nodejs-devel'],
      pacman: ['nodejs'],
      apk: ['nodejs-dev'],
    },
  },
};

/** The needs of every entry: those of the native build and nothing else. */
export const kBuildNeeds = ['make', 'compiler', 'openmp', 'cmake', 'onednn', 'eigen'];
/** The tools of the checks, in addition. */
export const kDeveloperNeeds = Object.keys(kNeeds).filter((id) => !kBuildNeeds.includes(id));

/** The needs that are not met, of those that this process could use: [{ id, what, problem, packages }]. */
export function unmet(ids) {
  return ids
    .filter((id) => !kNeeds[id].useless?.())
    .map((id) => ({ id, ...kNeeds[id], problem: kNeeds[id].problem() }))
    .filter((need) => need.problem !== null);
}
