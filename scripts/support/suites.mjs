// The suites of `npm test`: which of them a run includes, and what it prints of them.

import * as checks from './checks.mjs';
import { differences, leftOutList } from './left_out.mjs';
import { bold, green, red, say, yellow } from './shell.mjs';
import { commitNumber, turnOf } from './turns.mjs';

/** The runs of `npm test`, each with all suites of those before it. `by hand` is in none of them. */
const kRuns = ['quick', 'default', 'all', 'by hand'];

/**
 * The suites in the order in which they run.
 * - what: what the suite checks
 * - since: the smallest run that includes it
 * - tools: what the machine needs for it (needs.mjs)
 * - targets: the CMake targets that it uses
 * - beside: whether it takes one processor, and may run beside another of these
 * - platform: the platform that it proves (docs/platforms.md), where it is one of those that take turns in continuous integration
 */
export const kSuites = [
  { name: 'types', what: "TypeScript's types", beside: true, run: checks.runTypes },
  {
    name: 'lint',
    what: "biome's rules, and who may import whom",
    beside: true,
    run: checks.runLint,
  },
  { name: 'format-ts', what: 'the format of TypeScript', beside: true, run: checks.runFormatTs },
  {
    name: 'format-cpp',
    what: 'the format of C++',
    beside: true,
    tools: ['clang-format'],
    run: checks.runFormatCpp,
  },
  { name: 'generated', what: 'generated files', beside: true, run: checks.runGenerated },
  { name: 'api', what: 'doc comments of exports', beside: true, run: checks.runApi },
  {
    name: 'cpp',
    what: 'the C++ tests',
    tools: ['doctest'],
    targets: ['balora_tests'],
    run: checks.runCpp,
  },
  {
    name: 'unit',
    what: 'the TypeScript tests',
    targets: ['balora_fake_device'],
    run: checks.runUnit,
  },
  {
    // Before `processes` and `long`, which then find the emulated device.
    name: 'emulated',
    what: 'the CUDA kernels on an emulated device',
    since: 'all',
    tools: ['doctest'],
    run: checks.runEmulated,
  },
  {
    name: 'processes',
    what: 'the TypeScript tests that start processes or measure time or memory',
    since: 'default',
    targets: ['balora_fake_device', checks.emulatedIfBuilt],
    run: checks.runProcesses,
  },
  {
    name: 'long',
    what: 'the TypeScript tests that take minutes: real models, ends at random moments, the package, the demo',
    since: 'all',
    targets: ['balora_fake_device', checks.emulatedIfBuilt],
    run: checks.runLong,
  },
  {
    name: 'levels',
    what: 'the TypeScript tests of products on older instructions',
    since: 'all',
    run: checks.runLevels,
  },
  {
    name: 'sanitize',
    what: 'the C++ tests with sanitizers',
    since: 'all',
    tools: ['doctest'],
    run: checks.runSanitized,
  },
  {
    name: 'attack',
    what: 'random and damaged inputs for three minutes',
    since: 'all',
    run: checks.runAttack,
  },
  {
    name: 'fuzz',
    what: "libFuzzer on the readers of files for a minute, with clang's sanitizers",
    since: 'all',
    run: checks.runFuzz,
  },
  {
    name: 'tsan',
    what: 'the C++ tests with the thread sanitizer',
    since: 'by hand',
    tools: ['doctest'],
    run: checks.runThreadSanitized,
  },
  {
    name: 'gyp',
    what: "node-gyp's build",
    since: 'all',
    tools: ['python', 'node-headers'],
    run: checks.runGyp,
  },
  {
    name: 'debian12',
    what: 'Debian 12: its g++ and oneDNN 2.6, the C++ tests, and clang 16 on every source of native/',
    since: 'all',
    platform: 'Debian 12',
    tools: ['debootstrap'],
    run: checks.runDebian12,
  },
  {
    name: 'odr',
    what: 'types and signatures that two C++ sources give one name',
    since: 'all',
    run: checks.runOdr,
  },
  {
    name: 'walks',
    what: 'docs/walks.md, by the lines that an op executes',
    since: 'all',
    run: checks.runWalks,
  },
  {
    name: 'signatures',
    what: "the registry's signatures of the npm packages",
    since: 'all',
    run: checks.runSignatures,
  },
  {
    name: 'nvcc',
    what: 'the CUDA files with nvcc',
    since: 'all',
    platform: "CUDA's kernels",
    run: checks.runNvcc,
  },
  { name: 'gpu', what: 'a GPU against the CPU', since: 'all', run: checks.runGpu },
  {
    name: 'tidy',
    what: 'clang-tidy',
    since: 'by hand',
    tools: ['clang-tidy'],
    run: checks.runTidy,
  },
];

/** The command that runs some suites alone. */
const commandFor = (...names) => `npm test -- --only ${names.join(',')}`;

/** The names of the checks of platforms, which take turns in continuous integration. */
export const kPlatformChecks = kSuites.filter(({ platform }) => platform).map(({ name }) => name);

/** The checks of platforms whose turn it is at this commit: all of them outside of continuous integration. */
export const platformsNow = (env = process.env) =>
  env.CI === 'true' ? turnOf(kPlatformChecks, commitNumber()) : kPlatformChecks;

/**
 * Whether options include a suite.
 * @param options { run: one of kRuns, only: names of suites, or null for all of the run, platforms: the checks of platforms whose
 *   turn it is; all of them where it is missing }
 */
function includes({ run, only, platforms = kPlatformChecks }, { name, since = 'quick', platform }) {
  if (only) return only.includes(name);
  const turn = !platform || platforms.includes(name);
  return turn && kRuns.indexOf(since) <= kRuns.indexOf(run);
}

/** The suites that these options run. */
export const wanted = (options) => kSuites.filter((suite) => includes(options, suite));

const gather = (suites, key) => [
  ...new Set(
    suites
      .flatMap((suite) => suite[key] ?? [])
      .flatMap((one) => (typeof one === 'function' ? one() : one)),
  ),
];

/** The tools (needs.mjs) that these options' suites run. */
export const toolsFor = (options) => gather(wanted(options), 'tools');

/**
 * The CMake targets that these options' suites use.
 * @param without the tools that are missing: targets that need them are not built
 */
export function targetsFor(options, without) {
  const lacking = (suite) => (suite.tools ?? []).some((tool) => without.includes(tool));
  return [
    'balora',
    ...gather(
      wanted(options).filter((suite) => !lacking(suite)),
      'targets',
    ),
  ];
}

/** Runs one suite, or leaves it out where a tool is missing; its counts. */
async function runSuite({ name, tools = [], run }, without, options) {
  const lacks = without.filter(({ id }) => tools.includes(id));
  if (lacks.length > 0) {
    for (const { reason } of lacks) say(yellow(`left out: ${reason}`));
    const why = lacks.map(({ reason }) => reason).join('; ');
    return { passed: 0, failed: 0, leftOut: [{ name, why }] };
  }
  try {
    return { leftOut: [], ...(await run(options)) };
  } catch (error) {
    say(red(error.message));
    return { passed: 0, failed: 1, leftOut: [] };
  }
}

/**
 * Runs the wanted suites.
 * @param options { run: one of kRuns, only: names of suites, or null for all of the run, platforms: the checks of platforms whose
 *   turn it is, attack: arguments of the attack }
 * @param without the tools that the machine lacks: [{ id, reason }]
 * @returns the sums of their counts: { passed, failed, skipped }
 */
export async function runSuites(options, without) {
  const groups = leftOutList({ turn: options.only ?? options.platforms });
  const rows = [];
  const began = performance.now();
  const suites = wanted(options);
  const timed = async (suite) => {
    const started = performance.now();
    const counts = await runSuite(suite, without, options);
    return { suite, seconds: (performance.now() - started) / 1000, ...counts };
  };
  const head = ({ name }) => say(`\n${bold(`── ${name}`)}`);
  // Each of the first takes one processor, so they run two at a time.
  const first = suites.filter(({ beside }) => beside);
  const running = first.map(() => null);
  const lane = async () => {
    for (let i = running.indexOf(null); i >= 0; i = running.indexOf(null)) {
      running[i] = timed(first[i]);
      await running[i];
    }
  };
  await Promise.all([lane(), lane()]);
  for (const row of await Promise.all(running)) {
    head(row.suite);
    process.stdout.write(row.text ?? '');
    rows.push(row);
  }
  for (const suite of suites.filter(({ beside }) => !beside)) {
    head(suite);
    const row = await timed(suite);
    process.stdout.write(row.text ?? '');
    rows.push(row);
  }
  const others = options.only ? [] : kSuites.filter((suite) => !includes(options, suite));
  const unexpected = process.env.CI === 'true' ? unlisted(options, rows, others, groups) : [];
  say('');
  // The failures are printed again at the end, where they survive in a truncated log.
  for (const { suite, failures } of rows) {
    for (const failure of failures ?? []) say(red(`${suite.name}: ${failure}`));
  }
  for (const line of unexpected) say(red(line));
  await sayTable(rows, (performance.now() - began) / 1000);
  sayLeftOut(rows, others, groups);
  const failing = rows.filter(({ failed }) => failed > 0).map(({ suite }) => suite.name);
  if (failing.length > 0) say(`Run these alone: ${commandFor(...failing)}`);
  const total = (key) => rows.reduce((so, row) => so + row[key], 0);
  return {
    passed: total('passed'),
    failed: total('failed') + unexpected.length,
    skipped: rows.reduce((so, { leftOut }) => so + leftOut.length, 0) + others.length,
  };
}

/**
 * The differences between what a run left out and test/left_out.json, which fail in continuous integration.
 * @param options those of {@link runSuites}
 * @param rows [{ suite, leftOut, projects }] of the suites that ran
 * @param others the suites that the run does not include
 * @param groups from leftOutList
 */
export function unlisted(options, rows, others, groups) {
  // A run of everything also answers for the suites that it does not include.
  const missed = options.only === null && options.run === 'all' ? others : [];
  const ran = new Set([
    ...rows.flatMap(({ suite, projects = [] }) => [suite.name, ...projects]),
    ...missed.map(({ name }) => name),
  ]);
  const names = [...rows.flatMap(({ leftOut }) => leftOut), ...missed].map(({ name }) => name);
  return differences(names, groups, (name) => ran.has(name.split(':')[0]));
}

/** Prints a row of counts for each suite. */
async function sayTable(rows, seconds) {
  const { textTable } = await import('../../dist/cli/text_table.js');
  const lines = rows.map(({ suite, seconds, passed, failed, leftOut, assertions = 0 }) => {
    const state = failed > 0 ? 'failed' : 'ok';
    const counts = `${passed} passed, ${failed} failed, ${leftOut.length} skipped`;
    const more = assertions > 0 ? `${assertions} assertions` : '';
    return [state, suite.name, counts, more, `${seconds.toFixed(1)} s`];
  });
  const total = ['', '', '', '', `${(seconds / 60).toFixed(1)} min`];
  const shown = textTable([...lines, total], 'lllrr').split('\n');
  rows.forEach(({ failed, leftOut }, i) => {
    const paint = failed > 0 ? red : leftOut.length > 0 ? yellow : green;
    shown[i] = shown[i].replace(/^\w+/, paint);
  });
  say(shown.join('\n'));
}

/**
 * Prints what a run left out, and what runs it: the suites that it does not include, those that the machine cannot run, and the
 * skipped tests by the reason that test/left_out.json gives.
 */
function sayLeftOut(rows, others, groups) {
  const lines = others.map(({ name, what }) => `${name}: ${what}: ${commandFor(name)}`);
  const byGroup = new Map();
  for (const { leftOut, suite } of rows) {
    for (const { name, why } of leftOut) {
      const group = groups.find(({ names }) => names.includes(name));
      if (why) lines.push(`${name}: ${suite.what}: ${why}`);
      else if (group) byGroup.set(group, (byGroup.get(group) ?? 0) + 1);
      else lines.push(name);
    }
  }
  for (const [{ why, run }, count] of byGroup) {
    lines.push(`${count} ${count === 1 ? 'test' : 'tests'}: ${why}${run ? `: ${run}` : ''}`);
  }
  if (lines.length === 0) return;
  say(yellow('\nLeft out:'));
  for (const line of lines) say(yellow(`  ${line}`));
  if (others.some(({ since }) => since !== 'by hand')) {
    say(yellow('Everything that this machine can run: npm test -- --all'));
  }
  say(yellow('Checks for some changes, by hand: docs/building.md#checks'));
}
