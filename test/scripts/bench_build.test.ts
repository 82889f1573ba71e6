// build/harness, the compiled benchmark: it is current (test/support/global_setup.mjs) and complete, and uses the same built
// library as importers of "balora", so that a process has one engine and one Tensor class.
import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';

const kRoot = fileURLToPath(new URL('../..', import.meta.url));
const filesOf = (folder: string, ending: string): string[] =>
  readdirSync(join(kRoot, folder), { recursive: true })
    .map(String)
    .filter((name) => name.endsWith(ending))
    .map((name) => name.slice(0, -ending.length))
    .sort();

const inRoot = (path: string): string => relative(kRoot, path);

describe('build/harness', () => {
  it('has a module for each source', () => {
    const built = filesOf('build/harness', '.js');
    expect(built).toEqual(filesOf('bench/harness', '.ts'));
    expect(built).toContain('kernels/row');
  });

  it('imports itself and dist/, never lib/', () => {
    const outside = filesOf('build/harness', '.js').flatMap((name) => {
      const path = join(kRoot, 'build/harness', `${name}.js`);
      const imports = readFileSync(path, 'utf8').matchAll(/(?:\bfrom |\bimport\()['"](\.[^'"]+)/g);
      return [...imports]
        .map(([, specifier = '']) => join(dirname(path), specifier))
        .filter(
          (target) => !existsSync(target) || !/^(build\/harness|dist)\//.test(inRoot(target)),
        );
    });
    expect(outside).toEqual([]);
  });

  it('creates tensors of the class that the package exports', () => {
    const program = `
      import { Tensor } from 'balora';
      import { ids } from './build/harness/kernels/kit.js';
      console.log(ids(2, 2) instanceof Tensor);`;
    const args = ['--input-type=module', '-e', program];
    const options = { cwd: kRoot, encoding: 'utf8' } as const;
    expect(execFileSync(process.execPath, args, options).trim()).toBe('true');
  });
});
