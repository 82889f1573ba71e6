// Builds what the package is made of: `native` (CMake, build/release) and `ts` (tsc, dist/); no argument: both.
import { spawnSync } from 'node:child_process';
import { existsSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));

function run(command, args) {
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: 'inherit' });
  if (error) throw error;
  if (status !== 0) process.exit(status ?? 1);
}

function has(command) {
  return spawnSync(command, ['--version'], { stdio: 'ignore' }).status === 0;
}

function buildNative() {
  const out = join(root, 'build', 'release');
  if (!existsSync(join(out, 'CMakeCache.txt'))) {
    run('cmake', [
      '-S',
      root,
      '-B',
      out,
      '-DCMAKE_BUILD_TYPE=Release',
      ...(has('ninja') ? ['-G', 'Ninja'] : []),
    ]);
  }
  run('cmake', ['--build', out, '--parallel', '2']);
}

function buildTs() {
  rmSync(join(root, 'dist'), { recursive: true, force: true });
  run(process.execPath, [
    join(root, 'node_modules', 'typescript', 'bin', 'tsc'),
    '-p',
    'tsconfig.build.json',
  ]);
}

const what = process.argv[2] ?? 'all';
if (what === 'native' || what === 'all') buildNative();
if (what === 'ts' || what === 'all') buildTs();
