// The counts that `npm test` takes from a run of vitest.
import { expect, it } from 'vitest';

// The script has no types.
const path = '../../scripts/support/vitest.mjs';
const { countsOf } = (await import(path)) as { countsOf(report: object): object };

it('counts tests and assertions, and names failures and skipped tests with project and file', () => {
  const test = (name: string, state: string, more: object = {}) => ({
    ...{ name, state, assertions: 2 },
    ...more,
  });
  const one = {
    ...{ project: 'unit', file: 'test/a.test.ts', state: 'failed', errors: [] },
    tests: [
      test('sums > two', 'passed'),
      test('sums > three', 'failed', { error: 'expected 3' }),
      test('sums > four', 'skipped', { assertions: 0 }),
    ],
  };
  const other = { ...one, project: 'cpu-avx2', tests: [test('sums > two', 'passed')] };
  const broken = { ...other, file: 'test/b.test.ts', errors: ['no such module'], tests: [] };
  expect(countsOf({ files: [one, other, broken], errors: ['unhandled'] })).toEqual({
    passed: 2,
    failed: 4,
    assertions: 6,
    failures: [
      'unit: test/a.test.ts: sums > three: expected 3',
      'cpu-avx2: test/a.test.ts failed',
      'cpu-avx2: test/b.test.ts: no such module',
      'unhandled',
    ],
    leftOut: ['unit: test/a.test.ts: sums > four'],
    projects: ['unit', 'cpu-avx2'],
  });
});
