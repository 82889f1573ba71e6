// The counts that `npm test` takes from a doctest executable, here a script that prints what one prints.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it, vi } from 'vitest';

// The script has no types.
const path = '../../scripts/support/doctest.mjs';
const { runDoctest } = (await import(path)) as {
  runDoctest(executable: string, options?: { only?: string }): object;
};
const folder = mkdtempSync(join(tmpdir(), 'balora-doctest-'));
afterAll(() => rmSync(folder, { recursive: true }));

const kLine = '='.repeat(79);
const list = (...names: string[]) =>
  `[doctest] listing all test case names\n${kLine}\n${names.join('\n')}\n${kLine}\n`;
const summary = (cases: string, assertions: number) =>
  `${kLine}\n[doctest] test cases: ${cases} skipped\n[doctest] assertions: ${assertions} | ${assertions} passed | 0 failed |\n`;

/** Runs an executable that prints a text, and ends with a status. */
function run(text: string, { status = 0, only }: { status?: number; only?: string } = {}): object {
  const file = join(folder, 'tests');
  writeFileSync(
    file,
    `#!/bin/sh
case "$*" in
*--no-skip*) printf '%s' '${list('one', 'two', 'alone')}' ;;
*--list*) printf '%s' '${list('one', 'two')}' ;;
*) printf '%s' '${text}'; exit ${status} ;;
esac
`,
    { mode: 0o755 },
  );
  const shown = vi.spyOn(process.stdout, 'write').mockReturnValue(true);
  try {
    return runDoctest(file, only === undefined ? {} : { only });
  } finally {
    shown.mockRestore();
  }
}

it('counts its own cases, the assertions also of those that it runs apart, and names what it skips', () => {
  const text =
    summary(' 1 |  1 passed | 0 failed | 2', 5) + summary(' 2 |  2 passed | 0 failed | 1', 7);
  expect(run(text)).toEqual({
    ...{ passed: 2, failed: 0, assertions: 12, failures: [], leftOut: ['alone'] },
  });
});

it('names the cases that failed', () => {
  const block = `${kLine}\nx_test.cc:1:\nTEST CASE:  two\n\nx_test.cc:2: ERROR: CHECK( 1 == 2 )\n`;
  const text = block + summary(' 2 |  1 passed | 1 failed | 1', 7);
  expect(run(text, { status: 1 })).toMatchObject({ failed: 1, failures: ['TEST CASE:  two'] });
});

it('counts a crash, and a pattern that matches nothing, as a failure', () => {
  expect(run('', { status: 139 })).toMatchObject({ passed: 0, failed: 1 });
  expect(run(summary(' 2 |  2 passed | 0 failed | 1', 7), { status: 1 })).toMatchObject({
    failed: 1,
  });
  const none = summary(' 0 |  0 passed | 0 failed | 3', 0);
  expect(run(none, { only: 'staging*' })).toMatchObject({ failed: 1, leftOut: [] });
});
