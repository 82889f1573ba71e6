// The turns of the checks of platforms: who has one at which commit, also in a shallow clone.
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';

interface Module {
  kTurnSize: number;
  commitNumber(folder: string): number | null;
  turnOf(names: string[], number: number | null, size?: number): string[];
}
// The script has no types.
const path = '../../scripts/support/turns.mjs';
const { commitNumber, kTurnSize, turnOf } = (await import(path)) as Module;

describe('the turn', () => {
  const names = ['a', 'b', 'c', 'd', 'e'];

  it('has two names, which follow those of the number before', () => {
    expect(kTurnSize).toBe(2);
    const turns = [0, 1, 2, 3, 4, 5].map((number) => turnOf(names, number));
    expect(turns).toEqual([
      ['a', 'b'],
      ['c', 'd'],
      ['a', 'e'],
      ['b', 'c'],
      ['d', 'e'],
      ['a', 'b'],
    ]);
  });

  it.each([3, 4, 5, 7])('comes to each of %i names in as few numbers as possible', (count) => {
    const all = Array.from({ length: count }, (_, i) => `check ${i}`);
    for (let first = 0; first < 20; ++first) {
      const numbers = Array.from({ length: Math.ceil(count / 2) }, (_, i) => first + i);
      const had = new Set(numbers.flatMap((number) => turnOf(all, number)));
      expect([...had].sort()).toEqual(all);
    }
  });

  it('has half of the names where they are few', () => {
    expect(turnOf(['a'], 7)).toEqual(['a']);
    expect([0, 1, 2].map((number) => turnOf(['a', 'b'], number))).toEqual([['a'], ['b'], ['a']]);
    expect([0, 1].map((number) => turnOf(['a', 'b', 'c'], number))).toEqual([
      ['a', 'b'],
      ['a', 'c'],
    ]);
  });

  it('is that of all where there is no commit', () => {
    expect(turnOf(names, null)).toEqual(names);
  });

  it('takes the largest number that a hash gives', () => {
    expect(turnOf(names, Number.parseInt('f'.repeat(12), 16))).toHaveLength(2);
  });
});

describe('the number of a commit', () => {
  let folder = '';
  const own = (): string => join(folder, 'own');
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'balora-turns-'));
    git(folder, 'init', '-q', 'own');
  });
  afterEach(() => rmSync(folder, { recursive: true, force: true }));

  function git(at: string, ...args: string[]): string {
    const settings = ['-c', 'user.name=a', '-c', 'user.email=a@b', '-c', 'commit.gpgsign=false'];
    const { status, stdout, stderr } = spawnSync('git', ['-C', at, ...settings, ...args], {
      encoding: 'utf8',
    });
    expect(status, stderr).toBe(0);
    return stdout.trim();
  }
  const commit = (text: string): string => git(own(), 'commit', '-q', '--allow-empty', '-m', text);

  it('is the count of commits up to it, also in a fresh clone', () => {
    for (const text of ['one', 'two', 'three']) commit(text);
    git(folder, 'clone', '-q', own(), 'clone');
    expect([own(), join(folder, 'clone')].map(commitNumber)).toEqual([3, 3]);
  });

  it('changes by commit in a shallow clone, too, and is the same in each of one depth or another', () => {
    const numbers: (number | null)[] = [];
    for (const text of ['one', 'two', 'three', 'four']) {
      commit(text);
      if (text === 'one') continue; // a repository of one commit has nothing to leave out
      const clones = ['1', '2'].slice(0, text === 'two' ? 1 : 2).map((depth) => {
        const name = `${text}-${depth}`;
        git(folder, 'clone', '-q', '--depth', depth, `file://${own()}`, name);
        return commitNumber(join(folder, name));
      });
      expect(new Set(clones).size).toBe(1);
      numbers.push(clones[0] as number);
    }
    expect(new Set(numbers).size).toBe(3);
    expect(numbers.every((number) => Number.isSafeInteger(number))).toBe(true);
    // A clone of depth 1 counts one commit, whatever was committed.
    expect(numbers).not.toContain(1);
  });

  it('is null where there is none', () => {
    expect(commitNumber(own())).toBeNull();
    expect(commitNumber(folder)).toBeNull();
  });
});
