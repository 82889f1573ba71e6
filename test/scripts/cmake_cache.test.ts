// Build folders that CMake would refuse: they were moved, or the tools that made them are gone.
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';

interface Module {
  parseCache(text: string): Record<string, string>;
  staleReason(state: {
    cache: Record<string, string>;
    source: string;
    folder: string;
    exists: (path: string) => boolean;
  }): string | null;
  removeStale(folder: string, source: string): string | null;
}
// The script has no types.
const path = '../../scripts/support/cmake_cache.mjs';
const { parseCache, staleReason, removeStale } = (await import(path)) as Module;

const kText = `# This is the CMakeCache file.
//The directory containing a CMake project
CMAKE_CACHEFILE_DIR:INTERNAL=/home/a/balora/build/release
CMAKE_CXX_COMPILER:FILEPATH=/usr/bin/c++
CMAKE_HOME_DIRECTORY:INTERNAL=/home/a/balora
CMAKE_MAKE_PROGRAM:FILEPATH=/usr/bin/ninja
EMPTY:STRING=
WITH_EQUALS:STRING=-DA=1
`;
const kPlace = { source: '/home/a/balora', folder: '/home/a/balora/build/release' };
const all = () => true;

describe('staleReason', () => {
  const cache = parseCache(kText);
  it('reads the entries of the cache', () => {
    expect(cache).toMatchObject({
      CMAKE_CXX_COMPILER: '/usr/bin/c++',
      EMPTY: '',
      WITH_EQUALS: '-DA=1',
    });
    expect(Object.keys(cache)).toHaveLength(6);
  });

  it('is null for a folder in its original place', () => {
    expect(staleReason({ cache, ...kPlace, exists: all })).toBeNull();
    expect(staleReason({ cache: {}, ...kPlace, exists: all })).toBeNull();
  });

  it.each([
    [{ source: '/srv/balora' }, 'it was made for /home/a/balora'],
    [{ folder: '/srv/release' }, 'it was made in /home/a/balora/build/release'],
    [{ exists: (file: string) => file !== '/usr/bin/c++' }, '/usr/bin/c++ is gone'],
    [{ exists: (file: string) => file !== '/usr/bin/ninja' }, '/usr/bin/ninja is gone'],
  ])('gives up one that is of no use: %j', (change, reason) => {
    expect(staleReason({ cache, ...kPlace, exists: all, ...change })).toBe(reason);
  });
});

describe('removeStale', () => {
  let root = '';
  beforeEach(() => {
    root = mkdtempSync(join(tmpdir(), 'balora-cache-'));
  });
  afterEach(() => rmSync(root, { recursive: true, force: true }));

  it('removes only a folder that was moved', () => {
    const folder = join(root, 'build', 'release');
    mkdirSync(folder, { recursive: true });
    expect(removeStale(folder, root)).toBeNull(); // the folder is not configured yet
    const cache = (home: string) => {
      writeFileSync(join(folder, 'CMakeCache.txt'), `CMAKE_HOME_DIRECTORY:INTERNAL=${home}\n`);
    };
    cache(root);
    expect(removeStale(folder, root)).toBeNull();
    expect(existsSync(folder)).toBe(true);
    cache('/elsewhere');
    expect(removeStale(folder, root)).toBe('it was made for /elsewhere');
    expect(existsSync(folder)).toBe(false);
  });
});
