// Runs the C++ tests, which are doctest executables, and counts their cases and assertions.
import { spawnSync } from 'node:child_process';
import { red, say } from './shell.mjs';

const kSummary = /test cases:\s*\d+ \|\s*(\d+) passed \|\s*(\d+) failed \|\s*(\d+) skipped/g;
const kAssertions = /assertions:\s*(\d+) \|/g;

function run(executable, args, env) {
  return spawnSync(executable, ['--no-colors=true', ...args], {
    ...{ encoding: 'utf8', maxBuffer: 1 << 28 },
    env: { ...process.env, ...env },
  });
}

/** The names of an executable's test cases, those that it skips included or not. */
function namesOf(executable, args, env) {
  const { stdout } = run(executable, ['--list-test-cases', ...args], env);
  return (stdout ?? '')
    .split('\n')
    .filter((line) => line !== '' && !/^(\[doctest\]|=+$)/.test(line));
}

/** The test cases that an executable does not run by itself. */
function skippedBy(executable, env) {
  const ran = new Set(namesOf(executable, [], env));
  return namesOf(executable, ['--no-skip'], env).filter((name) => !ran.has(name));
}

/**
 * Runs an executable, and shows what it prints.
 * @param env environment variables to add
 * @param only run the cases whose names match this pattern; it is an error if there are none
 * @returns counts; `leftOut` has the names of skipped cases. Assertions of cases that the executable runs in a process of their own
 *   are counted with its own
 */
export function runDoctest(executable, { env = {}, only = null } = {}) {
  const result = run(executable, only ? [`--test-case=${only}`] : [], env);
  const text = result.stdout ?? '';
  process.stdout.write(text);
  process.stderr.write(result.stderr ?? '');
  // The last summary is that of this process: a case may run the executable again, which prints one before.
  const line = [...text.matchAll(kSummary)].at(-1);
  const [passed, failed] = line ? line.slice(1, 3).map(Number) : [0, 1];
  const empty = only !== null && passed + failed === 0;
  if (empty)
    say(red(`no test case matches ${only}: mend the pattern in scripts/support/suites.mjs`));
  const failing = failed || (empty || result.status !== 0 ? 1 : 0);
  const blocks = text.split(/^={20,}$/m).filter((block) => /ERROR/.test(block));
  const failures = blocks.flatMap((block) => block.match(/^TEST CASE: +.+$/m) ?? []);
  const assertions = [...text.matchAll(kAssertions)].reduce(
    (sum, found) => sum + Number(found[1]),
    0,
  );
  return {
    ...{ passed, failed: failing, assertions, failures: [...new Set(failures)] },
    leftOut: only === null ? skippedBy(executable, env) : [],
  };
}
