// The commands that configure and build a folder with CMake. cmake-js runs CMake (docs/decisions/cmake-js.md); these functions choose
// compiler and generator, and give it several targets and empty values.
import { existsSync, readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { isAbsolute, join } from 'node:path';
import { parseCache, removeStale } from './cmake_cache.mjs';
import { chooseCompiler } from './compiler.mjs';
import { has, inRoot, root, SetupError, say } from './shell.mjs';

const jobs = String(Math.max(1, availableParallelism()));

/** The arguments with which Node runs a command of cmake-js on build/OUT. Those in `passed` go to CMake as they are. */
function cmakeJs(command, { out, options, passed }) {
  const program = inRoot('node_modules', 'cmake-js', 'bin', 'cmake-js');
  if (!existsSync(program)) {
    throw new SetupError(
      'cmake-js, which runs CMake, is not installed: run "npm ci --ignore-scripts", then this again.',
    );
  }
  const place = ['--directory', root, '--out', inRoot('build', out)];
  return [program, command, '--log-level', 'error', ...place, ...options, '--', ...passed];
}

/** The compiler, its flags and the generator of a new build folder. */
function chooseTools() {
  const { compiler, problem } = chooseCompiler();
  if (!compiler) {
    throw new SetupError(
      `C++ compiler: ${problem}. Install one, or name one in CXX, and run this again.`,
    );
  }
  return {
    compiler: compiler.command,
    flags: [...(compiler.flags ?? []), process.env.CXXFLAGS ?? ''].join(' ').trim(),
    generator: has('ninja') ? 'Ninja' : 'Unix Makefiles',
  };
}

/** The tools that a build folder was made with, since CMake refuses to change them; those of a new one otherwise. */
export function toolsOf(cache, choose = chooseTools) {
  const { CMAKE_CXX_COMPILER: compiler, CMAKE_GENERATOR: generator } = cache;
  if (!generator || !compiler || !isAbsolute(compiler)) return choose();
  return { compiler, generator, flags: cache.CMAKE_CXX_FLAGS ?? '' };
}

/**
 * The arguments with which Node configures build/OUT; a folder that cannot be used here is removed.
 * @param defines CMake cache entries, as NAME=VALUE
 */
export function configureArguments(out, defines) {
  const folder = inRoot('build', out);
  const reason = removeStale(folder, root);
  if (reason !== null) say(`      build/${out} is removed and built again: ${reason}`);
  const file = join(folder, 'CMakeCache.txt');
  const { compiler, flags, generator } = toolsOf(
    existsSync(file) ? parseCache(readFileSync(file, 'utf8')) : {},
  );
  return cmakeJs('configure', {
    out,
    // Without a C compiler cmake-js looks for g++ or clang++ by these very names. No target is written in C.
    options: ['--generator', generator, '--cxx', compiler, '--cc', compiler],
    // cmake-js leaves out empty values of its own option, and sets CMAKE_CXX_FLAGS, which would hide the variable CXXFLAGS.
    passed: [`CMAKE_CXX_FLAGS=${flags}`, ...defines].map((define) => `-D${define}`),
  });
}

/** The arguments with which Node builds targets, all when empty, of build/OUT. */
export function buildArguments(out, targets) {
  const passed = targets.length > 0 ? ['--target', ...targets] : [];
  return cmakeJs('build', { out, options: ['--parallel', jobs], passed });
}
