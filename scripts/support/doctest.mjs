// Runs the C++ tests, which are doctest executables, and counts their cases and assertions.
import { spawn, spawnSync } from 'node:child_process';
import { red, say } from './shell.mjs';

const kSummary = /test cases:\s*\d+ \|\s*(\d+) passed \|\s*(\d+) failed \|\s*(\d+) skipped/g;
const kAssertions = /assertions:\s*(\d+) \|/g;

/** The call of an executable of this machine. */
const here = (executable) => (args, env) => ({
  ...{ program: executable, args },
  env: { ...process.env, ...env },
});

/** Runs an executable. @param call from {@link here}, or one that runs it elsewhere */
function run(call, own, variables) {
  const { program, args, env } = call(['--no-colors=true', ...own], variables);
  return spawnSync(program, args, { encoding: 'utf8', maxBuffer: 1 << 28, env });
}

/** The names of an executable's test cases, those that it skips included or not. */
function namesOf(call, args, env) {
  const { stdout } = run(call, ['--list-test-cases', ...args], env);
  return (stdout ?? '')
    .split('\n')
    .filter((line) => line !== '' && !/^(\[doctest\]|=+$)/.test(line));
}

/** The test cases that an executable does not run by itself. */
function skippedBy(call, env) {
  const ran = new Set(namesOf(call, [], env));
  return namesOf(call, ['--no-skip'], env).filter((name) => !ran.has(name));
}

/** Runs an executable beside others. */
function start(call, own, variables) {
  const { program, args, env } = call(['--no-colors=true', ...own], variables);
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'], env });
    const said = { stdout: '', stderr: '' };
    for (const name of ['stdout', 'stderr']) {
      child[name].setEncoding('utf8').on('data', (text) => {
        said[name] += text;
      });
    }
    child.on('error', reject);
    child.on('close', (status) => resolve({ ...said, status }));
  });
}

/** The counts of one run. @param only the pattern of its cases; null: it has no pattern that may match none */
function countsOf({ stdout, stderr, status }, only) {
  process.stdout.write(stdout);
  process.stderr.write(stderr);
  // The last summary is that of this process: a case may run the executable again, which prints one before.
  const line = [...stdout.matchAll(kSummary)].at(-1);
  const [passed, failed] = line ? line.slice(1, 3).map(Number) : [0, 1];
  const empty = only !== null && passed + failed === 0;
  if (empty)
    say(red(`no test case matches ${only}: mend the pattern in scripts/support/checks.mjs`));
  const blocks = stdout.split(/^={20,}$/m).filter((block) => /ERROR/.test(block));
  return {
    passed,
    failed: failed || (empty || status !== 0 ? 1 : 0),
    assertions: [...stdout.matchAll(kAssertions)].reduce((sum, found) => sum + Number(found[1]), 0),
    failures: blocks.flatMap((block) => block.match(/^TEST CASE: +.+$/m) ?? []),
  };
}

/**
 * Runs an executable, and shows what it prints.
 * @param executable its path, or a function of arguments and variables that gives the call which runs it elsewhere:
 *   { program, args, env }
 * @param env environment variables to add
 * @param only run the cases whose names match this pattern; it is an error if there are none
 * @param except leave out the cases whose names match this pattern
 * @param beside the cases whose names match this pattern run in a second process at the same time, which is an error if there are none
 * @returns counts; `leftOut` has the names of skipped cases. Assertions of cases that the executable runs in a process of their own
 *   are counted with its own
 */
export async function runDoctest(
  executable,
  { env = {}, only = null, beside = null, except = null } = {},
) {
  const parts =
    beside === null
      ? [
          {
            args: [
              ...(only === null ? [] : [`--test-case=${only}`]),
              ...(except === null ? [] : [`--test-case-exclude=${except}`]),
            ],
            only,
          },
        ]
      : [
          { args: [`--test-case=${beside}`], only: beside },
          { args: [`--test-case-exclude=${beside}`], only: null },
        ];
  // Threads that wait by spinning would take the processor from the other process.
  const shared = beside === null ? env : { OMP_WAIT_POLICY: 'passive', ...env };
  const call = typeof executable === 'function' ? executable : here(executable);
  const results = await Promise.all(parts.map(({ args }) => start(call, args, shared)));
  const counts = results.map((result, i) => countsOf(result, parts[i].only));
  const sum = (key) => counts.reduce((total, one) => total + one[key], 0);
  return {
    ...{ passed: sum('passed'), failed: sum('failed'), assertions: sum('assertions') },
    failures: [...new Set(counts.flatMap(({ failures }) => failures))],
    leftOut: only === null && except === null ? skippedBy(call, env) : [],
  };
}
