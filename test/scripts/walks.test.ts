// The lists of docs/walks.md: files that exist, from lib/ or from where another walk ends to another family's header.
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';

interface Walk {
  op: string;
  by: string;
  files: string[];
  end: string;
}
interface Module {
  readWalks(text?: string): Walk[];
  linesOf(walk: Walk): number;
  familiesOf(walk: Walk): string[];
  missingFrom(walk: Walk, executed: string[]): string[];
}
// The script has no types.
const path = '../../scripts/support/walks.mjs';
const { familiesOf, linesOf, missingFrom, readWalks } = (await import(path)) as Module;
const kRoot = fileURLToPath(new URL('../..', import.meta.url));

describe('docs/walks.md', () => {
  const walks = readWalks();

  it('has four walks, each a list of files that exist', () => {
    expect(walks.map(({ op }) => op)).toEqual([
      ...['headLosses', 'linear', 'attention', 'productInTiles'],
    ]);
    for (const { files } of walks) {
      expect(new Set(files).size).toBe(files.length);
      expect(files.filter((file) => !existsSync(join(kRoot, file)))).toEqual([]);
    }
  });

  it("begins in lib/ or at another's end, and ends at the header of another family", () => {
    const ends = walks.map(({ end }) => end);
    for (const walk of walks) {
      const first = walk.files[0] ?? '';
      expect(first.startsWith('lib/') || ends.includes(first)).toBe(true);
      expect(walk.end).toMatch(/\.h$/);
      expect(familiesOf(walk).some((family) => walk.end.startsWith(`${family}/`))).toBe(false);
    }
  });
});

describe('a walk', () => {
  it.each(readWalks().map((walk) => [walk.op, walk] as const))('of %s is short', (_, walk) => {
    expect(walk.files.length).toBeLessThanOrEqual(12);
    expect(linesOf(walk)).toBeLessThanOrEqual(2700);
  });
});

describe('missingFrom', () => {
  const text = [
    '## Title: `op` by `core`',
    ...['| `lib/a.ts` | x |', '| `native/ops/f/a.cc` | x |', '| `native/kernels/g.h` | x |'],
  ].join('\n');
  const [walk] = readWalks(text);

  it('names files of the families of a walk that it does not list, and no others', () => {
    if (!walk) throw new Error('no walk');
    expect(walk).toMatchObject({ op: 'op', by: 'core', end: 'native/kernels/g.h' });
    const executed = ['native/ops/f/a.cc', 'native/ops/f/b.cc', 'native/ops/h/c.cc'];
    expect(missingFrom(walk, executed)).toEqual(['native/ops/f/b.cc']);
  });
});
