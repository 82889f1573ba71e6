// test/left_out.json and its comparison with what a run of `npm test` left out.
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { kCpuLevels } from '../support/cpu_levels.ts';

interface Group {
  when: string;
  why: string;
  run?: string;
  names: string[];
  holds: boolean | null;
}
// The script has no types.
const path = '../../scripts/support/left_out.mjs';
const { leftOutList, differences } = (await import(path)) as {
  leftOutList(options?: { text?: string; turn?: string[] }): Group[];
  differences(
    names: string[],
    groups: Pick<Group, 'names' | 'holds'>[],
    ran: (name: string) => boolean,
  ): string[];
};
const suites = '../../scripts/support/suites.mjs';
const { kPlatformChecks, kSuites } = (await import(suites)) as {
  kPlatformChecks: string[];
  kSuites: { name: string }[];
};
const list = leftOutList();
const kProjects = [
  ...['unit', 'long', 'processes', 'alone', 'cuda-emulated'],
  ...kCpuLevels.map(({ name }) => `cpu-${name.replace('_', '-')}`),
];

describe('the list', () => {
  it('gives a reason for each group, and each name once but for checks of platforms', () => {
    const names = list.flatMap((group) => group.names);
    const twice = names.filter((name, i) => names.indexOf(name) !== i);
    expect(twice.filter((name) => !kPlatformChecks.includes(name))).toEqual([]);
    for (const { when, why, names: own } of list) {
      expect(why, when).toMatch(/\w/);
      expect(own.length, when).toBeGreaterThan(0);
    }
  });

  it('names test files that exist', () => {
    const files = list.flatMap(({ names }) =>
      names.flatMap((name) => /: (test\/\S+\.ts): /.exec(name)?.[1] ?? []),
    );
    expect(files.length).toBeGreaterThan(30);
    expect(files.filter((file) => !existsSync(file))).toEqual([]);
  });

  it('names all tests on ../shared, which are skipped without it', () => {
    const names = list.flatMap((group) => group.names);
    const files = readdirSync('test', { recursive: true })
      .map((path) => `test/${path}`)
      .filter((path) => path.endsWith('.test.ts'));
    const tests = files.flatMap((file) =>
      Array.from(
        readFileSync(file, 'utf8').matchAll(/\bdescribeShared\(\s*(['"])(.+?)\1/g),
        ([, , name]) => `: ${file}: ${name} > needs ../shared/`,
      ),
    );
    expect(tests.length).toBeGreaterThan(30);
    expect(tests.filter((one) => !names.some((name) => name.includes(one)))).toEqual([]);
  });

  it('names suites, and projects of vitest', () => {
    const known = [...kSuites.map(({ name }) => name), ...kProjects];
    const first = list.flatMap(({ names }) => names.map((name) => name.split(':')[0] as string));
    expect([...new Set(first)].filter((name) => !known.includes(name))).toEqual([]);
  });

  it('is refused with a condition that is unknown', () => {
    const text = JSON.stringify([{ when: 'at night', why: 'dark', names: ['nvcc'] }]);
    expect(() => leftOutList({ text })).toThrow('knows no condition "at night"');
  });

  it('has each check of a platform where it is not its turn', () => {
    const groups: Group[] = JSON.parse(readFileSync('test/left_out.json', 'utf8'));
    const text = JSON.stringify(groups.filter(({ when }) => when === 'not its turn'));
    const ofTurn = (turn?: string[]) => leftOutList(turn ? { text, turn } : { text });
    expect(ofTurn().map(({ names }) => names)).toEqual(kPlatformChecks.map((name) => [name]));
    const holds = (turn?: string[]) => ofTurn(turn).map((group) => group.holds);
    expect(holds()).toEqual(kPlatformChecks.map(() => false));
    expect(holds(kPlatformChecks)).toEqual(kPlatformChecks.map(() => false));
    expect(holds([])).toEqual(kPlatformChecks.map(() => true));
    const [first] = kPlatformChecks;
    expect(holds([first as string])).toEqual(kPlatformChecks.map((name) => name !== first));
  });
});

describe('the comparison', () => {
  const groups = [
    { holds: true, names: ['unit: a', 'unit: a', 'gpu'] },
    { holds: false, names: ['nvcc'] },
    { holds: null, names: ['alone: c'] },
  ];
  const of = (...names: string[]) => differences(names, groups, (name) => name !== 'gpu');

  it('accepts what is listed, also what only the test itself finds out', () => {
    expect(of('unit: a', 'unit: a')).toEqual([]);
    expect(of('unit: a', 'alone: c', 'gpu', 'unit: a')).toEqual([]);
  });

  it('names what is left out beside the list, where its condition does not hold, or too often', () => {
    const line = (name: string) =>
      `left out, but not listed for this machine in test/left_out.json: ${name}`;
    expect(of('unit: a', 'unit: a', 'unit: b')).toEqual([line('unit: b')]);
    expect(of('unit: a', 'unit: a', 'nvcc')).toEqual([line('nvcc')]);
    expect(of('unit: a', 'unit: a', 'unit: a')).toEqual([line('unit: a')]);
  });

  it('accepts for either reason what two groups list, and expects it once', () => {
    const twice = (first: boolean, second: boolean, ...names: string[]) =>
      differences(
        names,
        [
          { holds: first, names: ['debian12'] },
          { holds: second, names: ['debian12'] },
        ],
        () => true,
      );
    expect(twice(true, true, 'debian12')).toEqual([]);
    expect(twice(true, false, 'debian12')).toEqual([]);
    expect(twice(false, true)).toHaveLength(1);
    expect(twice(true, true)).toHaveLength(1);
    expect(twice(true, true, 'debian12', 'debian12')).toHaveLength(1);
    expect(twice(false, false, 'debian12')).toHaveLength(1);
  });

  it('names what is listed and ran', () => {
    expect(of('unit: a')).toEqual(['listed in test/left_out.json, but not left out: unit: a']);
  });
});
