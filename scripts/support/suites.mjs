// The checks of `npm test`. Each runs a program and reports how many of its tests passed, failed and were skipped; a program that
// fails without a count is counted as one failure.

import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { dirname, relative } from 'node:path';
import { buildNative, configureNative } from './build_steps.mjs';
import { chooseCompiler } from './compiler.mjs';
import { buildCuda, forbiddenSpills, nvccMissing, overLimits } from './cuda_build.mjs';
import { clangTidy, kClangFormat, nodeHeaders } from './needs.mjs';
import { findOneDnn } from './onednn.mjs';
import { isDebian13 } from './packages.mjs';
import { bold, capture, green, inRoot, red, root, runVisible, say, yellow } from './shell.mjs';

const bin = (name, file) => inRoot('node_modules', ...name.split('/'), ...file.split('/'));

/** The counts of one yes-or-no check. */
function single(fine) {
  return { passed: fine ? 1 : 0, failed: fine ? 0 : 1, skipped: 0 };
}

/** A program's exit status as one check. */
function program(command, args, options) {
  return single(runVisible(command, args, options) === 0);
}

/**
 * Leaves out a check, or a part of one, for which this machine lacks something. Continuous integration on Debian 13 has everything
 * but nvcc, a GPU and the reference models: there a lack is a failure unless it is excused.
 */
function leftOut(reason, { excused = false } = {}) {
  const strict = process.env.CI === 'true' && isDebian13() && !excused;
  say(strict ? red(`must not be left out here: ${reason}`) : yellow(`left out: ${reason}`));
  return {
    ...{ passed: 0, failed: strict ? 1 : 0, skipped: strict ? 0 : 1 },
    ...{ failures: strict ? [reason] : [], lacks: [reason] },
  };
}

/** Adds a failure where the exit status is a failure although no test failed. */
function withStatus(counts, status) {
  return status !== 0 && counts.failed === 0 ? { ...counts, failed: 1 } : counts;
}

/** Runs a doctest executable, or those of its cases that `only` matches, and reads its summary line. */
function runDoctest(executable, env = {}, only = null) {
  const filter = only ? [`--test-case=${only}`] : [];
  const result = spawnSync(executable, ['--no-colors=true', ...filter], {
    encoding: 'utf8',
    env: { ...process.env, ...env },
    maxBuffer: 1 << 28,
  });
  process.stdout.write(result.stdout ?? '');
  process.stderr.write(result.stderr ?? '');
  // The last summary is used, since a test may run the executable again with other settings, which prints one before.
  const summary = /test cases:\s*\d+ \|\s*(\d+) passed \|\s*(\d+) failed \|\s*(\d+) skipped/g;
  const line = [...(result.stdout ?? '').matchAll(summary)].at(-1);
  const [passed, failed, skipped] = line ? line.slice(1).map(Number) : [0, 1, 0];
  if (only && passed + failed === 0) {
    say(red(`no test case matches ${only}: mend the pattern in scripts/support/suites.mjs`));
  }
  const empty = only && passed === 0 ? 1 : 0;
  const blocks = (result.stdout ?? '').split(/^={20,}$/m).filter((block) => /ERROR/.test(block));
  const failures = blocks.flatMap((block) => block.match(/^TEST CASE: +.+$/m) ?? []);
  return withStatus(
    {
      ...{ passed, failed: failed || empty, skipped: only ? 0 : skipped },
      failures: [...new Set(failures)],
    },
    result.status,
  );
}

/** Runs the C++ tests with AddressSanitizer and UndefinedBehaviorSanitizer, those of products also on an emulated AMX. */
async function runSanitized() {
  const defines = [
    'BALORA_SANITIZE=address,undefined',
    'BALORA_ADDON=OFF',
    'BALORA_EMULATED_AMX=ON',
  ];
  await buildNative({ out: 'sanitize', targets: ['balora_tests'], defines });
  return runDoctest(inRoot('build', 'sanitize', 'balora_tests'), {
    ASAN_OPTIONS: 'detect_stack_use_after_return=1:strict_string_checks=1',
    UBSAN_OPTIONS: 'print_stacktrace=1',
  });
}

/**
 * Runs the tests of the emulated device itself, and those of the CUDA kernels on it against the CPU. vitest then also runs its tests of
 * ops on it.
 */
async function runEmulated() {
  if (process.platform !== 'linux' || process.arch !== 'x64') {
    say('skipped: the emulated device works on linux-x64 only');
    return { passed: 0, failed: 0, skipped: 1 };
  }
  await buildNative({ targets: kEmulatedTargets });
  const device = inRoot('build', 'release', 'balora_device_tests');
  const plugin = { BALORA_CUDA_PLUGIN: inRoot('build', 'emulator', 'balora_cuda.so') };
  return sum([
    runDoctest(inRoot('build', 'release', 'balora_emulator_tests')),
    runDoctest(device, plugin),
    runDoctest(device, { ...plugin, BALORA_EMULATOR_DEVICES: '1' }, 'staging*'), // like a machine with one GPU
  ]);
}
const kEmulatedTargets = ['balora_cuda_emulated', 'balora_device_tests', 'balora_emulator_tests'];

/**
 * Builds every CUDA file for every architecture with warnings as errors, and checks that no kernel spills or exceeds the limits. Then
 * checks that the plug-in links no CUDA library, and without a GPU reports what is missing.
 */
async function runNvcc() {
  const reason = nvccMissing();
  if (reason) return leftOut(reason, { excused: true });
  const rows = await buildCuda();
  const spilling = forbiddenSpills(rows);
  for (const { kernel, architecture, spilled } of spilling) {
    say(red(`${kernel} spills ${spilled} bytes on ${architecture}`));
  }
  const above = overLimits(rows);
  for (const { kernel, architecture, takes } of above) {
    say(red(`${kernel} takes ${takes} on ${architecture}`));
  }
  const failed = spilling.length + above.length;
  const kernels = { passed: rows.length - failed, failed, skipped: 0 };
  return sum([kernels, checkGenerated('gen_ptxas.mjs'), checkPlugin()]);
}

/** Checks the libraries that the plug-in links against, and its messages through the addon; a GPU is used where there is one. */
function checkPlugin() {
  const plugin = inRoot('build', 'cuda', 'balora_cuda.so');
  const needed = (capture('readelf', ['-d', plugin]) ?? 'readelf failed: libcudart')
    .split('\n')
    .filter((line) => /NEEDED|failed/.test(line));
  const linked = needed.filter((line) => /libcu(da|dart|blas|solver)/.test(line));
  for (const line of linked) say(red(`${plugin}: ${line.trim()}`));
  const source = `import { zeros } from ${JSON.stringify(inRoot('dist', 'ops', 'index.js'))};
    try { console.log('works', await zeros([1], { device: 'cuda' }).item()); }
    catch (error) { console.log(error.code, error.message); }`;
  const said = spawnSync(process.execPath, ['--input-type=module', '-e', source], {
    ...{ cwd: root, encoding: 'utf8', env: { ...process.env, BALORA_CUDA_PLUGIN: plugin } },
  }).stdout.trim();
  say(`${plugin}: ${said}`);
  const fine = kPluginSays.test(said);
  return sum([single(linked.length === 0), single(fine)]);
}
const kPluginSays =
  /^(works 0$|ERR_UNSUPPORTED cuda:0: (no NVIDIA driver was found \(libcuda\.so\.1\)|cuBLAS was not found))/;

/** Runs clang-tidy over the product's C++, without OpenMP, whose GCC header clang does not read. */
async function runTidy() {
  const folder = inRoot('build', 'tidy'); // clang cannot read the precompiled headers of GCC
  await configureNative({ out: 'tidy', defines: ['CMAKE_DISABLE_PRECOMPILE_HEADERS=ON'] });
  const extra = ['-fno-openmp', '-Wno-unknown-pragmas', '-Wno-unused-private-field'];
  const flags = ['-quiet', '-p', folder, ...extra.map((flag) => `-extra-arg=${flag}`)];
  return program(clangTidy(), [...flags, `^${inRoot('native')}/`]);
}

/** Builds the addon once more by binding.gyp, without CMake, loads it and asks for its signatures. */
function runGyp() {
  const headers = nodeHeaders();
  const gyp = bin('node-gyp', 'bin/node-gyp.js');
  const flags = [`--nodedir=${dirname(dirname(headers))}`, '--jobs=max', '--silent'];
  const env = {
    BALORA_ONEDNN_ROOT: findOneDnn().root,
    CXX: process.env.CXX || chooseCompiler().compiler.command,
  };
  const built = program(process.execPath, [gyp, 'configure', 'build', ...flags], { env });
  if (built.failed > 0) return built;
  const BALORA_BINARY = inRoot('build', 'Release', 'balora.node');
  const check = [inRoot('scripts', 'gen_types.mjs'), '--check'];
  return program(process.execPath, check, { env: { BALORA_BINARY } });
}

function runVitest() {
  const report = inRoot('build', 'vitest.json');
  rmSync(report, { force: true });
  const reporters = ['--reporter=default', '--reporter=json', `--outputFile.json=${report}`];
  const vitest = bin('vitest', 'vitest.mjs');
  const status = runVisible(process.execPath, [vitest, 'run', ...reporters]);
  if (!existsSync(report)) return { passed: 0, failed: 1, skipped: 0 };
  const json = JSON.parse(readFileSync(report, 'utf8'));
  // A file that failed to load counts as a failure, because it holds no test that could fail.
  const broken = json.testResults.filter(
    (file) => file.status === 'failed' && !file.assertionResults.some((t) => t.status === 'failed'),
  ).length;
  const counts = {
    passed: json.numPassedTests,
    failed: json.numFailedTests + broken,
    skipped: json.numPendingTests + json.numTodoTests,
    failures: json.testResults.flatMap(failuresOfFile),
    lacks: existsSync(inRoot('..', 'shared')) ? [] : [kNoReferenceModels],
  };
  return withStatus(counts, status);
}

const kNoReferenceModels =
  'the tests on reference models: ../shared is not there (docs/building.md#reference-models)';

/** A line for each failed test in one file of vitest's report, or one line for a file that could not run. */
function failuresOfFile({ name, status, message, assertionResults }) {
  const file = relative(root, name);
  const firstLine = (text) => (text ?? '').split('\n')[0];
  const failed = assertionResults.filter((test) => test.status === 'failed');
  if (status === 'failed' && failed.length === 0) return [`${file}: ${firstLine(message)}`];
  return failed.map((test) => `${file}: ${test.fullName}: ${firstLine(test.failureMessages[0])}`);
}

const kNativeFolders = [
  ...['native', 'cuda', 'bench'],
  ...['test/native', 'test/device', 'test/emulator', 'test/fake_device'],
];

/** Every C++ file of the project, which clang-format checks. */
export function nativeFiles() {
  return kNativeFolders.flatMap((folder) =>
    existsSync(inRoot(folder))
      ? readdirSync(inRoot(folder), { recursive: true })
          .filter((name) => /\.(h|cc|cu|cuh)$/.test(name))
          .map((name) => `${folder}/${name}`)
      : [],
  );
}

/** Checks that a committed generated file is the one that its script writes. */
function checkGenerated(script) {
  return program(process.execPath, [inRoot('scripts', script), '--check']);
}

function sum(rows) {
  const total = (key) => rows.reduce((so, row) => so + row[key], 0);
  const counts = { passed: total('passed'), failed: total('failed'), skipped: total('skipped') };
  return {
    ...counts,
    failures: rows.flatMap((row) => row.failures ?? []),
    lacks: rows.flatMap((row) => row.lacks ?? []),
  };
}

const biome = bin('@biomejs/biome', 'bin/biome');
const cruiser = bin('dependency-cruiser', 'bin/dependency-cruise.mjs');
const tsc = bin('typescript', 'bin/tsc');

/** Runs biome's rules, and the rules of who may import whom. */
async function runLint() {
  return sum([
    await program(process.execPath, [biome, 'lint', '--error-on-warnings']),
    await program(process.execPath, [cruiser, '--config', '.dependency-cruiser.mjs', ...kCruised]),
  ]);
}

/** The folders whose imports .dependency-cruiser.mjs has rules for. */
const kCruised = ['lib', 'bench/harness'];

export const kSuites = [
  { name: 'types', run: () => program(process.execPath, [tsc, '--noEmit', '-p', 'tsconfig.json']) },
  { name: 'lint', run: runLint },
  {
    name: 'format-ts',
    run: () => program(process.execPath, [biome, 'check', '--linter-enabled=false']),
  },
  {
    name: 'format-cpp',
    tools: ['clang-format'],
    run: () => program(`clang-format-${kClangFormat}`, ['--dry-run', '-Werror', ...nativeFiles()]),
  },
  {
    name: 'generated',
    run: () =>
      sum(
        [
          ...['gen_types.mjs', 'gen_kernels_doc.mjs', 'gen_models_doc.mjs'],
          ...['gen_options_doc.mjs', 'gen_performance.mjs', 'gen_ptxas.mjs'],
        ].map(checkGenerated),
      ),
  },
  {
    // The check that every export has a doc comment, and that every link in one leads somewhere.
    name: 'api',
    run: () => program(process.execPath, [bin('typedoc', 'bin/typedoc'), '--emit', 'none']),
  },
  {
    name: 'cpp',
    tools: ['doctest'],
    targets: ['balora_tests'],
    run: () => runDoctest(inRoot('build', 'release', 'balora_tests')),
  },
  // The emulated device comes before vitest, which then finds it.
  { name: 'emulated', slow: true, tools: ['doctest'], run: runEmulated },
  { name: 'vitest', targets: ['balora_fake_device'], run: runVitest },
  { name: 'sanitize', slow: true, tools: ['doctest'], run: runSanitized },
  { name: 'gyp', slow: true, ci: true, tools: ['python', 'node-headers'], run: runGyp },
  { name: 'nvcc', slow: true, ci: true, run: runNvcc },
  { name: 'tidy', onRequest: true, tools: ['clang-tidy'], run: runTidy },
];

/** The suites that these options run. */
function wanted(options) {
  return kSuites.filter(
    (suite) => (!options.only || options.only.includes(suite.name)) && !skipReason(suite, options),
  );
}

const gather = (suites, key) => [...new Set(suites.flatMap((suite) => suite[key] ?? []))];

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

/** The reason why a suite does not run this time, or null. Suites named with --only always run. */
function skipReason(suite, { quick, only }) {
  if (only) return null;
  if (quick && suite.slow) return '--quick';
  if (suite.onRequest) return `runs with --only ${suite.name}`;
  if (suite.ci && process.env.CI !== 'true')
    return `runs where CI=true, or with --only ${suite.name}`;
  return null;
}

/** Runs one suite, or leaves it out where a tool is missing; its counts. */
async function runSuite(suite, without) {
  const lacks = without.filter(({ id }) => suite.tools?.includes(id));
  if (lacks.length > 0) return sum(lacks.map(({ reason }) => leftOut(reason)));
  try {
    return await suite.run();
  } catch (error) {
    say(red(error.message));
    return { passed: 0, failed: 1, skipped: 0 };
  }
}

/**
 * Runs the wanted suites.
 * @param without the tools that the machine lacks: [{ id, reason }]
 * @returns the sum of their counts
 */
export async function runSuites({ quick, only }, without) {
  const rows = [];
  for (const suite of kSuites) {
    if (only && !only.includes(suite.name)) continue;
    say(`\n${bold(`── ${suite.name}`)}`);
    const reason = skipReason(suite, { quick, only });
    if (reason) {
      say(`skipped: ${reason}`);
      rows.push({ name: suite.name, seconds: 0, passed: 0, failed: 0, skipped: 1 });
      continue;
    }
    const started = performance.now();
    const counts = await runSuite(suite, without);
    rows.push({ name: suite.name, seconds: (performance.now() - started) / 1000, ...counts });
  }
  say('');
  // The failures are printed again at the end, where they survive in a truncated log.
  for (const { name, failures } of rows) {
    for (const failure of failures ?? []) say(red(`${name}: ${failure}`));
  }
  const { textTable } = await import('../../dist/cli/text_table.js');
  const lines = rows.map(({ name, seconds, passed, failed, skipped }) => {
    const state = failed > 0 ? red('failed') : skipped > 0 ? yellow('ok') : green('ok');
    const counts = `${passed} passed, ${failed} failed, ${skipped} skipped`;
    return [state, name, counts, `${seconds.toFixed(1)} s`];
  });
  say(textTable(lines, 'lllr'));
  sayLacks(rows);
  const failing = rows.filter(({ failed }) => failed > 0).map(({ name }) => name);
  if (failing.length > 0) say(`Run these alone: npm test -- --only ${failing.join(',')}`);
  return sum(rows);
}

/** Prints the checks that could not run on this machine, and the requirements of each. */
function sayLacks(rows) {
  const all = rows.flatMap(({ name, lacks = [] }) => lacks.map((lack) => `${name}: ${lack}`));
  if (all.length === 0) return;
  say(yellow(`\n${all.length} left out on this machine:`));
  for (const lack of all) say(yellow(`  ${lack}`));
}
