// What the machine must bring: platform, Node, and the system packages of the native build. On Debian and Ubuntu
// missing packages are installed through apt when that needs no password; elsewhere the exact command is printed.
import { existsSync, realpathSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { capture, has, runLogged, SetupError, say, yellow } from './shell.mjs';

// What runs and builds from any Node 20 on; what node-gyp and vitest's bundler, the tools of the tests, ask for on top.
const kMinNode = { build: [20, 0], test: [20, 17] };
export const kClangMajor = 18; // the newest major that both Debian 13 and Ubuntu 24.04 carry

/** Throws SetupError on a platform or Node that the groups cannot work on; says when it is untested. */
export function checkPlatform(
  groups,
  { platform = process.platform, arch = process.arch, node = process.versions.node } = {},
) {
  const name = `${platform}-${arch}`;
  const [major, minor] = node.split('.').map(Number);
  for (const group of groups) {
    const [leastMajor, leastMinor] = kMinNode[group];
    if (major > leastMajor || (major === leastMajor && minor >= leastMinor)) continue;
    const who = group === 'test' ? "balora's tests need" : 'balora needs';
    throw new SetupError(`${who} Node >= ${leastMajor}.${leastMinor}, this is Node ${node}.`);
  }
  if (name === 'linux-x64') return;
  if (name === 'linux-arm64' || platform === 'darwin') {
    say(yellow(`${name} is untested: the build is tried, problems are likely.`));
    return;
  }
  throw new SetupError(
    `UnsupportedPlatform: balora builds on linux-x64 (linux-arm64 and macOS: untested), this is ${name}.`,
  );
}

/** The folder with node_api.h beside this Node or in the system; null when there is none. */
export function nodeHeaders() {
  const prefix = dirname(dirname(realpathSync(process.execPath)));
  const folders = [join(prefix, 'include', 'node'), '/usr/include/node', '/usr/local/include/node'];
  return folders.find((folder) => existsSync(join(folder, 'node_api.h'))) ?? null;
}

/** oneDNN's major version by its header; 0 when it is absent. */
function oneDnnMajor() {
  const text = capture('c++', [
    '-E',
    '-dM',
    '-x',
    'c++',
    '-include',
    'dnnl_version.h',
    '/dev/null',
  ]);
  return Number(text?.match(/#define DNNL_VERSION_MAJOR (\d+)/)?.[1] ?? 0);
}

const header = (path) =>
  ['/usr/include', '/usr/local/include'].some((folder) => existsSync(join(folder, path)));

// group build: what `npm run demo` needs; group test: what `npm test` needs on top.
const kNeeds = [
  {
    group: 'build',
    what: 'C++ compiler',
    apt: 'build-essential',
    met: () => has('c++') && has('make'),
  },
  { group: 'build', what: 'Python 3 (node-gyp)', apt: 'python3', met: () => has('python3') },
  { group: 'build', what: 'CMake', apt: 'cmake', met: () => has('cmake') },
  { group: 'build', what: 'Node headers', apt: 'libnode-dev', met: () => nodeHeaders() !== null },
  { group: 'build', what: 'oneDNN >= 3', apt: 'libdnnl-dev', met: () => oneDnnMajor() >= 3 },
  { group: 'build', what: 'Eigen 3', apt: 'libeigen3-dev', met: () => header('eigen3/Eigen/Core') },
  { group: 'test', what: 'doctest', apt: 'doctest-dev', met: () => header('doctest/doctest.h') },
  {
    group: 'test',
    what: `clang-format ${kClangMajor}`,
    apt: `clang-format-${kClangMajor}`,
    met: () => has(`clang-format-${kClangMajor}`),
  },
  {
    group: 'test',
    what: `clang-tidy ${kClangMajor}`,
    apt: `clang-tidy-${kClangMajor}`,
    met: () => has(`clang-tidy-${kClangMajor}`),
  },
];

export function missingNeeds(groups) {
  return kNeeds.filter((need) => groups.includes(need.group) && !need.met());
}

/** How apt can be called without a question: [] as root, ['sudo', '-n'] with free sudo, null otherwise. */
function aptPrefix() {
  if (!has('apt-get')) return null;
  if (process.getuid?.() === 0) return [];
  return has('sudo', ['-n', 'true']) ? ['sudo', '-n'] : null;
}

/** Installs what the groups miss, or throws with the command that would. Returns a note for the progress line. */
export async function ensureSystemPackages(groups) {
  const missing = missingNeeds(groups);
  if (missing.length === 0) return 'all present';
  const packages = missing.map((need) => need.apt);
  const list = missing.map((need) => `  ${need.what} (Debian, Ubuntu: ${need.apt})`).join('\n');
  const prefix = aptPrefix();
  if (prefix === null) {
    const command = has('apt-get')
      ? `sudo apt-get update && sudo apt-get install -y --no-install-recommends ${packages.join(' ')}`
      : "your system's package manager, with the packages above";
    throw new SetupError(
      `System packages are missing:\n${list}\nInstall them and run this again:\n  ${command}`,
    );
  }
  say(`      installing ${packages.join(' ')}`);
  const apt = async (name, args) => {
    const [command, ...rest] = [
      ...prefix,
      'env',
      'DEBIAN_FRONTEND=noninteractive',
      'apt-get',
      ...args,
    ];
    await runLogged(name, command, rest);
  };
  await apt('apt-update', ['update', '-q']);
  await apt('apt-install', ['install', '-y', '-q', '--no-install-recommends', ...packages]);
  const still = missingNeeds(groups);
  if (still.length > 0) {
    const names = still.map((need) => `${need.what} (${need.apt})`).join(', ');
    throw new SetupError(`apt-get succeeded, but still not usable: ${names}.`);
  }
  return `installed ${packages.length}`;
}
