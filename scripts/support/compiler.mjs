// The C++ compiler of the native builds: the choice among those on this machine, and the packages that an apt system can install
// where none is new enough.
import { spawnSync } from 'node:child_process';

/** The oldest major versions that build balora. */
export const kOldest = { gcc: 12, clang: 16, apple: 17 };
const kGccMajors = [16, 15, 14, 13, 12];
const kClangMajors = [22, 21, 20, 19, 18, 17, 16];

/**
 * Family and version of a compiler.
 * @param text what the compiler prints for --version
 * @returns {{ family: 'gcc' | 'clang' | 'apple', version: string, major: number } | null}
 */
export function parseCompiler(text) {
  const [line = ''] = text.split('\n');
  const clang = line.match(/(Apple )?clang version (\d+)((?:\.\d+)*)/);
  if (clang) {
    const [, apple, major, rest] = clang;
    return { family: apple ? 'apple' : 'clang', version: `${major}${rest}`, major: Number(major) };
  }
  // GCC's line ends with its version, after the name of the distribution's package in brackets.
  const gcc = /Free Software Foundation/.test(text)
    ? line.replace(/\([^()]*\)/g, '').match(/\s(\d+)((?:\.\d+)*)/)
    : null;
  return gcc ? { family: 'gcc', version: `${gcc[1]}${gcc[2]}`, major: Number(gcc[1]) } : null;
}

/** Whether a compiler's major version is one that builds balora. */
export const newEnough = ({ family, major }) => major >= kOldest[family];

const kNames = { gcc: 'g++', clang: 'clang', apple: 'Apple clang' };
const kWanted = `g++ ${kOldest.gcc} or newer, or clang ${kOldest.clang} or newer`;
const label = ({ command, family, version }) => `${command} is ${kNames[family]} ${version}`;

function ask(command) {
  const { status, stdout } = spawnSync(command, ['--version'], { encoding: 'utf8' });
  return status === 0 ? stdout : null;
}

/**
 * The compiler to build with: the one that CXX names, else the system's `c++`, else the newest g++-N, else the newest clang.
 * @param env the environment, for CXX
 * @param versionOf what a command prints for --version; null where it does not exist
 * @returns {{ compiler: object | null, problem: string | null }} compiler: { command, family, version, major }; problem: a sentence
 *   that says what is there and what is needed, where there is no compiler
 */
export function chooseCompiler({ env = process.env, versionOf = ask } = {}) {
  const at = (command) => {
    const text = versionOf(command);
    const parsed = text === null ? null : parseCompiler(text);
    return parsed ? { command, ...parsed } : null;
  };
  if (env.CXX) {
    const [command, ...flags] = env.CXX.trim().split(/\s+/);
    const named = at(command);
    if (named && newEnough(named)) return { compiler: { ...named, flags }, problem: null };
    const found = named ? `${label(named)}` : `${command} does not answer --version as a compiler`;
    return { compiler: null, problem: `CXX: ${found}; balora needs ${kWanted}` };
  }
  const usual = at('c++');
  if (usual && newEnough(usual)) return { compiler: usual, problem: null };
  const others = [
    ...kGccMajors.map((major) => `g++-${major}`),
    ...['clang++', ...kClangMajors.map((major) => `clang++-${major}`)],
  ];
  for (const command of others) {
    const found = at(command);
    if (found && newEnough(found)) return { compiler: found, problem: null };
  }
  const there = usual ? label(usual) : 'there is none';
  return { compiler: null, problem: `${there}; balora needs ${kWanted}` };
}

/** The apt packages that would be a compiler, best first; `g++` is the distribution's default. */
export const kAptCompilers = [
  ...['g++', ...kGccMajors.map((major) => `g++-${major}`)],
  ...kClangMajors.map((major) => `clang-${major}`),
];

/**
 * The apt packages that bring a compiler that is new enough.
 * @param candidates version that apt would install, by package name
 * @returns {string[] | null} null where the distribution has none
 */
export function aptCompiler(candidates) {
  // The version behind the epoch: 4:12.2.0-3 is version 12, and clang-16 is 1:16.0.6-15.
  const major = (version) => Number(version?.match(/^(?:\d+:)?(\d+)/)?.[1] ?? 0);
  const found = kAptCompilers.find((name) =>
    name.startsWith('clang')
      ? major(candidates[name]) >= kOldest.clang
      : major(candidates[name]) >= kOldest.gcc,
  );
  if (!found) return null;
  return found.startsWith('clang') ? [found, `${found.replace('clang', 'libomp')}-dev`] : [found];
}
