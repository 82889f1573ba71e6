// The suites of `npm test`: which of them a run includes, with their tools and targets, and what fails in continuous integration.
import { describe, expect, it } from 'vitest';

interface Options {
  run: 'quick' | 'default' | 'all';
  only: string[] | null;
  platforms?: string[];
}
interface Suite {
  name: string;
  what: string;
}
interface Row {
  suite: Suite;
  leftOut: { name: string }[];
  projects?: string[];
}
type Groups = { names: string[]; holds: boolean | null }[];

// The script has no types.
const path = '../../scripts/support/suites.mjs';
const { kPlatformChecks, kSuites, platformsNow, wanted, toolsFor, targetsFor, unlisted } =
  (await import(path)) as {
    kPlatformChecks: string[];
    kSuites: Suite[];
    platformsNow(env: Record<string, string>): string[];
    wanted(options: Options): Suite[];
    toolsFor(options: Options): string[];
    targetsFor(options: Options, without: string[]): string[];
    unlisted(options: Options, rows: Row[], others: Suite[], groups: Groups): string[];
  };

const checks = '../../scripts/support/checks.mjs';
const { attackArguments } = (await import(checks)) as {
  attackArguments(given: string[]): string[];
};

const namesOf = (run: Options['run'], only: Options['only'] = null) =>
  wanted({ run, only }).map(({ name }) => name);

describe('a run', () => {
  it('includes the suites of the smaller runs and its own, in one order', () => {
    const [quick, normal, all] = [namesOf('quick'), namesOf('default'), namesOf('all')];
    const order = kSuites.map(({ name }) => name);
    expect(quick).toEqual(order.filter((name) => quick.includes(name)));
    expect(normal).toEqual(order.filter((name) => [...quick, 'processes'].includes(name)));
    expect(all).toEqual(order.filter((name) => !['tidy', 'tsan'].includes(name)));
    expect(quick).toEqual(expect.arrayContaining(['types', 'cpp', 'unit']));
  });

  it('has only the named suites where some are named', () => {
    expect(namesOf('quick', ['tidy', 'types'])).toEqual(['types', 'tidy']);
  });

  it('has the tools of its suites', () => {
    const only = (...names: string[]) => toolsFor({ run: 'default', only: names });
    expect(only('cpp', 'unit')).toEqual(['doctest']);
    expect(only('unit', 'types')).toEqual([]);
    expect(only('format-cpp')).toEqual(['clang-format']);
    expect(only('tidy', 'gyp')).toEqual(expect.arrayContaining(['clang-tidy', 'python']));
    expect(toolsFor({ run: 'default', only: null })).toEqual(['clang-format', 'doctest']);
    expect(toolsFor({ run: 'all', only: null })).toContain('node-headers');
  });

  it('has the targets of its suites, without those whose tools are missing', () => {
    const targets = (only: string[] | null, without: string[] = []) =>
      targetsFor({ run: 'quick', only }, without);
    expect(targets(['types'])).toEqual(['balora']);
    expect(targets(['cpp', 'unit'])).toEqual(['balora', 'balora_tests', 'balora_fake_device']);
    expect(targets(null, ['doctest'])).toEqual(['balora', 'balora_fake_device']);
  });
});

describe('the checks of platforms', () => {
  const all = (options: Partial<Options>) =>
    wanted({ run: 'all', only: null, ...options })
      .map(({ name }) => name)
      .filter((name) => kPlatformChecks.includes(name));

  it('are in a run of everything, and in no smaller one', () => {
    expect(kPlatformChecks).toContain('debian12');
    expect(all({})).toEqual(kPlatformChecks);
    expect(all({ run: 'default' })).toEqual([]);
  });

  it('are left to other runs where it is not their turn, unless they are named', () => {
    expect(all({ platforms: [] })).toEqual([]);
    expect(all({ platforms: ['debian12'] })).toEqual(['debian12']);
    expect(all({ platforms: [], only: ['debian12'] })).toEqual(['debian12']);
    expect(toolsFor({ run: 'all', only: null, platforms: [] })).not.toContain('debootstrap');
    expect(toolsFor({ run: 'all', only: null })).toContain('debootstrap');
  });

  it('take turns in continuous integration alone, half of them a run and two at most', () => {
    expect(platformsNow({})).toEqual(kPlatformChecks);
    expect(platformsNow({ CI: 'true' })).toHaveLength(
      Math.min(2, Math.ceil(kPlatformChecks.length / 2)),
    );
  });
});

describe('what a run in continuous integration left out', () => {
  const [tidy, unit] = ['tidy', 'unit'].map((name) => kSuites.find((one) => one.name === name));
  const groups = [{ names: ['tidy', 'unit: a', 'cpu-avx2: b', 'nvcc'], holds: true }];
  const rowOf = (...names: string[]): Row => ({
    suite: unit as Suite,
    leftOut: names.map((name) => ({ name })),
    projects: ['unit'],
  });
  const of = (run: Options['run'], only: Options['only'], ...names: string[]) =>
    unlisted({ run, only }, [rowOf(...names)], only ? [] : [tidy as Suite], groups);

  it('is compared by the suites and projects that ran', () => {
    expect(of('quick', ['unit'], 'unit: a')).toEqual([]);
    expect(of('quick', null, 'unit: a')).toEqual([]);
    expect(of('quick', null)).toEqual([expect.stringMatching(/but not left out: unit: a$/)]);
    expect(of('quick', null, 'unit: a', 'unit: c')).toEqual([
      expect.stringMatching(/not listed .*: unit: c$/),
    ]);
  });

  it('includes in a run of everything the suites that it does not run', () => {
    expect(of('all', null, 'unit: a')).toEqual([]);
    expect(
      unlisted(
        { run: 'all', only: null },
        [rowOf('unit: a')],
        [tidy as Suite, unit as Suite],
        groups,
      ),
    ).toEqual([expect.stringMatching(/not listed .*: unit$/)]);
  });
});

describe('the attack', () => {
  it('has the same seed and time in each run that names none', () => {
    const own = attackArguments([]);
    expect(own).toEqual(['--seed', expect.stringMatching(/^\d+$/), '--minutes', '3']);
    expect(attackArguments(['--target', 'gguf'])).toEqual([...own, '--target', 'gguf']);
  });

  it('has the seed, and the time or the count, that were given', () => {
    const given = ['--seed', '7', '--minutes', '60'];
    expect(attackArguments(given)).toEqual(given);
    const counted = attackArguments(['--count', '5']);
    expect(counted).toEqual(['--seed', expect.anything(), '--count', '5']);
  });
});
