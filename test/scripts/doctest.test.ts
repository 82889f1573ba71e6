// The counts that `npm test` takes from a doctest executable, here a script that prints what one prints.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it, vi } from 'vitest';

// The script has no types.
const path = '../../scripts/support/doctest.mjs';
const { runDoctest } = (await import(path)) as {
  runDoctest(executable: string, options?: Options): Promise<object>;
};
interface Options {
  readonly only?: string;
  readonly beside?: string;
}
const folder = mkdtempSync(join(tmpdir(), 'balora-doctest-'));
afterAll(() => rmSync(folder, { recursive: true }));

const kLine = '='.repeat(79);
const list = (...names: string[]) =>
  `[doctest] listing all test case names\n${kLine}\n${names.join('\n')}\n${kLine}\n`;
const summary = (cases: string, assertions: number) =>
  `${kLine}\n[doctest] test cases: ${cases} skipped\n[doctest] assertions: ${assertions} | ${assertions} passed | 0 failed |\n`;

/** Runs an executable that prints a text, and ends with a status. */
async function run(
  text: string,
  { status = 0, besides = '', ...options }: Options & { status?: number; besides?: string } = {},
): Promise<object> {
  const file = join(folder, 'tests');
  writeFileSync(
    file,
    `#!/bin/sh
case "$*" in
*--test-case=products*) printf '%s' '${besides}' ;;
*--no-skip*) printf '%s' '${list('one', 'two', 'alone')}' ;;
*--list*) printf '%s' '${list('one', 'two')}' ;;
*) printf '%s' '${text}'; exit ${status} ;;
esac
`,
    { mode: 0o755 },
  );
  const shown = vi.spyOn(process.stdout, 'write').mockReturnValue(true);
  try {
    return await runDoctest(file, options);
  } finally {
    shown.mockRestore();
  }
}

it('counts its own cases, the assertions also of those that it runs apart, and names what it skips', async () => {
  const text =
    summary(' 1 |  1 passed | 0 failed | 2', 5) + summary(' 2 |  2 passed | 0 failed | 1', 7);
  expect(await run(text)).toEqual({
    ...{ passed: 2, failed: 0, assertions: 12, failures: [], leftOut: ['alone'] },
  });
});

it('names the cases that failed', async () => {
  const block = `${kLine}\nx_test.cc:1:\nTEST CASE:  two\n\nx_test.cc:2: ERROR: CHECK( 1 == 2 )\n`;
  const text = block + summary(' 2 |  1 passed | 1 failed | 1', 7);
  expect(await run(text, { status: 1 })).toMatchObject({
    failed: 1,
    failures: ['TEST CASE:  two'],
  });
});

it('counts a crash, and a pattern that matches nothing, as a failure', async () => {
  expect(await run('', { status: 139 })).toMatchObject({ passed: 0, failed: 1 });
  expect(await run(summary(' 2 |  2 passed | 0 failed | 1', 7), { status: 1 })).toMatchObject({
    failed: 1,
  });
  const none = summary(' 0 |  0 passed | 0 failed | 3', 0);
  expect(await run(none, { only: 'staging*' })).toMatchObject({ failed: 1, leftOut: [] });
});

it('adds up the cases that run in two processes, of which each must have some', async () => {
  const text = summary(' 3 |  2 passed | 1 failed | 1', 7);
  const besides = summary(' 1 |  1 passed | 0 failed | 3', 5);
  expect(await run(text, { status: 1, beside: 'products *', besides })).toMatchObject({
    ...{ passed: 3, failed: 1, assertions: 12, leftOut: ['alone'] },
  });
  const none = summary(' 0 |  0 passed | 0 failed | 4', 0);
  const fine = summary(' 3 |  3 passed | 0 failed | 1', 7);
  expect(await run(fine, { beside: 'products *', besides: none })).toMatchObject({ failed: 1 });
});
