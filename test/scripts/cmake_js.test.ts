// The commands of cmake-js that the scripts run, as the CMake commands that it makes of them.
import { spawnSync } from 'node:child_process';
import { describe, expect, it } from 'vitest';

interface Module {
  toolsOf(cache: Record<string, string>, choose?: () => Tools): Tools;
  configureArguments(out: string, defines: readonly string[]): string[];
  buildArguments(out: string, targets: readonly string[]): string[];
}
interface Tools {
  compiler: string;
  flags: string;
  generator: string;
}
// The script has no types.
const path = '../../scripts/support/cmake_js.mjs';
const { toolsOf, configureArguments, buildArguments } = (await import(path)) as Module;

/** The CMake command that cmake-js would run, by its own command for printing it, which needs no network. */
function printed([program = '', command, ...rest]: string[]): string[] {
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    [program, `print-${command}`, ...rest],
    { encoding: 'utf8', env: { ...process.env, https_proxy: 'http://127.0.0.1:9' } },
  );
  expect(stderr).toBe('');
  expect(status).toBe(0);
  return [...stdout.matchAll(/'((?:[^'\\]|\\.)*)'/g)].map(([, text]) => text as string);
}

/** The last value that the command gives an entry of the cache, which is the one that counts. */
const lastValue = (command: readonly string[], name: string): string | undefined =>
  command
    .findLast((word) => word.startsWith(`-D${name}=`))
    ?.split('=')
    .slice(1)
    .join('=');

describe('configureArguments', () => {
  const command = printed(
    configureArguments('not-there', ['BALORA_ONEDNN_ROOT=', 'BALORA_SANITIZE=address,undefined']),
  );

  it('configures a release build in the folder', () => {
    expect(command[0]).toBe('cmake');
    expect(lastValue(command, 'CMAKE_BUILD_TYPE')).toBe('Release');
    expect(lastValue(command, 'CMAKE_LIBRARY_OUTPUT_DIRECTORY')).toMatch(/\/build\/not-there\b/);
  });

  it('passes defines on, empty ones too, which reset what a folder has', () => {
    expect(lastValue(command, 'BALORA_ONEDNN_ROOT')).toBe('');
    expect(lastValue(command, 'BALORA_SANITIZE')).toBe('address,undefined');
  });

  it('names the chosen compiler and generator, and keeps CXXFLAGS', () => {
    expect(lastValue(command, 'CMAKE_CXX_COMPILER')).toMatch(/\+\+/);
    expect(command[command.indexOf('-G') + 1]).toMatch(/^(Ninja|Unix Makefiles)$/);
    expect(lastValue(command, 'CMAKE_CXX_FLAGS')).toBe(process.env.CXXFLAGS ?? '');
  });

  it('takes the headers of Node-API from node_modules', () => {
    expect(lastValue(command, 'CMAKE_JS_INC')).toMatch(
      /\/node_modules\/node-api-headers\/include;.*\/node_modules\/node-addon-api$/,
    );
  });
});

describe('buildArguments', () => {
  it('builds several targets, or all', () => {
    const targets = printed(buildArguments('not-there', ['balora', 'balora_tests']));
    expect(targets.slice(-3)).toEqual(['--target', 'balora', 'balora_tests']);
    expect(printed(buildArguments('not-there', []))).not.toContain('--target');
  });
});

describe('toolsOf', () => {
  const choose = () => ({ compiler: 'c++', flags: '', generator: 'Ninja' });
  const cache = {
    CMAKE_CXX_COMPILER: '/usr/bin/g++-12',
    CMAKE_CXX_FLAGS: '-g',
    CMAKE_GENERATOR: 'Unix Makefiles',
  };

  it('keeps what a build folder was made with', () => {
    expect(toolsOf(cache, choose)).toEqual({
      compiler: '/usr/bin/g++-12',
      flags: '-g',
      generator: 'Unix Makefiles',
    });
  });

  it.each<Record<string, string>>([
    {},
    { CMAKE_GENERATOR: 'Unix Makefiles' },
    { ...cache, CMAKE_CXX_COMPILER: 'CMAKE_CXX_COMPILER-NOTFOUND' },
  ])('chooses where the folder has none: %j', (without) => {
    expect(toolsOf(without, choose)).toEqual(choose());
  });
});
