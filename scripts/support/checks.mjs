// The checks of `npm test`. Each runs a program and gives counts: how many of its tests passed and failed, a line for each failure,
// and what it left out by name. A program that fails without a count is counted as one failure.

import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { buildNative, configureNative } from './build_steps.mjs';
import { choicesOf } from './choices.mjs';
import { chooseCompiler } from './compiler.mjs';
import { buildCuda, forbiddenSpills, nvccMissing, overLimits } from './cuda_build.mjs';
import { ensureRoot, insideRoot, rootFor } from './debian_root.mjs';
import { runDoctest } from './doctest.mjs';
import { runFuzzers } from './fuzz.mjs';
import { comparesDefinitions, hasGpu, kLeftOutLevels } from './left_out.mjs';
import { clangTidy, kClangFormat, nodeHeaders } from './needs.mjs';
import { ensureNode, nodeNow } from './nodes.mjs';
import { cacheFolder, findOneDnn } from './onednn.mjs';
import { capture, has, inRoot, red, root, runBeside, runVisible, say, yellow } from './shell.mjs';
import { runVitest } from './vitest.mjs';
import { executedBy, missingFrom, readWalks } from './walks.mjs';

const bin = (name, file) => inRoot('node_modules', ...name.split('/'), ...file.split('/'));

/** The counts of one yes-or-no check. */
function single(fine) {
  return { passed: fine ? 1 : 0, failed: fine ? 0 : 1 };
}

/** A program's exit status as one check. */
function program(command, args, options) {
  return single(runVisible(command, args, options) === 0);
}

/** A script's exit status as one check. */
const node = (...args) => program(process.execPath, args);

/** The exit status of a program that runs beside others as one check; `text` is what it printed. */
async function besideOthers(command, args) {
  const { status, text } = await runBeside(command, args);
  return { ...single(status === 0), text };
}

/** The same of a script. */
const nodeBeside = (...args) => besideOthers(process.execPath, args);

/** The sum of counts. */
function sum(rows) {
  const total = (key) => rows.reduce((so, row) => so + (row[key] ?? 0), 0);
  return {
    ...{ passed: total('passed'), failed: total('failed'), assertions: total('assertions') },
    failures: rows.flatMap((row) => row.failures ?? []),
    leftOut: rows.flatMap((row) => row.leftOut ?? []),
    projects: rows.flatMap((row) => row.projects ?? []),
    text: rows.map((row) => row.text ?? '').join(''),
  };
}

/** The counts of what this machine cannot run. @param why what is missing */
function lacking(name, why) {
  say(yellow(`left out: ${why}`));
  return { passed: 0, failed: 0, leftOut: [{ name, why }] };
}

/** The counts of an executable of C++ tests below build/, or as runDoctest takes it; its skipped cases are named `SUITE: CASE`. */
async function cases(suite, executable, options) {
  const place =
    typeof executable === 'string' ? inRoot('build', ...executable.split('/')) : executable;
  const { leftOut, ...counts } = await runDoctest(place, options);
  return { ...counts, leftOut: leftOut.map((name) => ({ name: `${suite}: ${name}` })) };
}

/** The counts of projects of vitest. @param node the program that runs them; default: this Node */
function tests(suite, projects, env, node) {
  const { leftOut, ...counts } = runVitest(suite, projects, env, node);
  return { ...counts, leftOut: leftOut.map((name) => ({ name })) };
}

/** Checks that committed generated files are those that their scripts write. */
export async function runGenerated() {
  const scripts = [
    ...['gen_types.mjs', 'gen_kernels_doc.mjs', 'gen_models_doc.mjs'],
    ...['gen_options_doc.mjs', 'gen_performance.mjs', 'gen_ptxas.mjs', 'gen_third_party.mjs'],
  ];
  const rows = [];
  for (const script of scripts) rows.push(await checkGenerated(script));
  return sum(rows);
}

/** Checks that every export has a doc comment, and that every link in one leads somewhere. */
export const runApi = () => nodeBeside(bin('typedoc', 'bin/typedoc'), '--emit', 'none');

/** The C++ tests that run the tests of products again, under older instructions: half of the time of all. */
const kOlderInstructions = 'products *';

/** Runs the C++ tests, and checks that they chose each implementation of an op for which this machine has the instructions. */
export async function runCpp() {
  const folder = mkdtempSync(join(tmpdir(), 'balora-choices-'));
  const file = join(folder, 'choices');
  try {
    const env = { BALORA_TEST_CHOICES: file };
    const counts = await cases('cpp', 'release/balora_tests', { env, beside: kOlderInstructions });
    const { count, unchosen, lacking } = choicesOf(readFileSync(file, 'utf8'));
    for (const name of unchosen) say(red(`no test chooses the implementation ${name}`));
    return sum([
      counts,
      {
        ...{ passed: count, failed: unchosen.length },
        failures: unchosen.map((name) => `no test chooses the implementation ${name}`),
        leftOut: lacking.map((feature) => ({ name: `cpp: implementations that need ${feature}` })),
      },
    ]);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/**
 * Checks that docs/walks.md names each file in which an op of it executes a line. A walk by an implementation that the processor does
 * not get is left out.
 */
export async function runWalks() {
  if (!comparesDefinitions()) return lacking('walks', 'the compiler of this machine is not GCC');
  const defines = ['BALORA_COVERAGE=ON', 'BALORA_TESTS=OFF'];
  await buildNative({ out: 'coverage', targets: ['balora'], defines });
  const walks = readWalks();
  const { major } = chooseCompiler().compiler;
  const gcov = [`gcov-${major}`, 'gcov'].find((name) => has(name, ['--version']));
  const runs = executedBy(
    walks.map(({ op }) => op),
    gcov,
  );
  return sum(
    walks.map((walk, i) => {
      const { ran, executed } = runs[i];
      if (!ran.includes(walk.by))
        return lacking(`walks: ${walk.op}`, `${walk.op} does not run by ${walk.by} here`);
      const missing = missingFrom(walk, executed);
      const failures = missing.map((file) => `docs/walks.md: ${walk.op} executes lines of ${file}`);
      for (const failure of failures) say(red(failure));
      return { ...single(missing.length === 0), failures };
    }),
  );
}

/** Runs the C++ tests with AddressSanitizer and UndefinedBehaviorSanitizer, those of products also on an emulated AMX. */
export async function runSanitized() {
  const defines = [
    'BALORA_SANITIZE=address,undefined',
    'BALORA_ADDON=OFF',
    'BALORA_EMULATED_AMX=ON',
  ];
  await buildNative({ out: 'sanitize', targets: ['balora_tests'], defines });
  const env = {
    ASAN_OPTIONS: 'detect_stack_use_after_return=1:strict_string_checks=1',
    UBSAN_OPTIONS: 'print_stacktrace=1',
  };
  return cases('sanitize', 'sanitize/balora_tests', { env, beside: kOlderInstructions });
}

/**
 * Runs the C++ tests with the thread sanitizer, without OpenMP, whose synchronisation it cannot see. test/native/tsan.supp lists what
 * it must not report, with the reasons.
 */
export async function runThreadSanitized() {
  const defines = ['BALORA_SANITIZE=thread', 'BALORA_ADDON=OFF'];
  await buildNative({ out: 'thread', targets: ['balora_tests'], defines });
  const suppressions = inRoot('test', 'native', 'tsan.supp');
  const env = {
    OMP_NUM_THREADS: '1', // oneDNN has OpenMP of its own
    TSAN_OPTIONS: `halt_on_error=0:second_deadlock_stack=1:suppressions=${suppressions}`,
  };
  return cases('tsan', 'thread/balora_tests', { env, beside: kOlderInstructions });
}

/** Minutes of the attack and of the fuzzers in a run that names no other time; together they take four. */
const kAttackMinutes = 3;
const kFuzzMinutes = 1;
/** Seed of both where none is given: a change fails by what it changed, not by the hour. Other seeds are for campaigns by hand. */
const kAttackSeed = 20261129;

/** The arguments of the attack: those that were given, the seed and the time of the suite where none was. */
export function attackArguments(given) {
  const limited = given.some((argument) => ['--minutes', '--count'].includes(argument));
  return [
    ...(given.includes('--seed') ? [] : ['--seed', `${kAttackSeed}`]),
    ...(limited ? [] : ['--minutes', `${kAttackMinutes}`]),
    ...given,
  ];
}

/**
 * Runs the attack (test/attack). A target without a finding counts as passed.
 * @param options attack: further arguments of its program
 */
export function runAttack({ attack = [] } = {}) {
  const report = inRoot('build', 'attack', 'report.json');
  rmSync(report, { force: true });
  const args = [inRoot('test', 'attack', 'main.mjs'), ...attackArguments(attack)];
  const status = runVisible(process.execPath, args);
  if (!existsSync(report)) return { passed: 0, failed: 1, failures: ['it ended without a report'] };
  const { results } = JSON.parse(readFileSync(report, 'utf8'));
  const ran = results.filter(({ missing }) => missing === null);
  const failing = ran.filter(({ findings }) => findings.length > 0);
  return {
    passed: ran.length - failing.length,
    failed: Math.max(failing.length, status === 0 ? 0 : 1),
    assertions: ran.reduce((sum, { inputs }) => sum + inputs, 0),
    failures: failing.flatMap(({ name, findings }) =>
      findings.map(({ kind, repeat }) => `${name}: ${kind}: ${repeat}`),
    ),
    leftOut: results
      .filter(({ missing }) => missing !== null)
      .map(({ name, missing }) => ({ name: `attack: ${name}`, why: missing })),
  };
}

/** Runs libFuzzer's programs (test/native/fuzz). @param options attack: its --seed and --minutes count here, too */
export async function runFuzz({ attack = [] } = {}) {
  const given = (name, otherwise) =>
    attack.includes(name) ? Number(attack[attack.indexOf(name) + 1]) : otherwise;
  const seconds = Math.round(20 * given('--minutes', kFuzzMinutes));
  const seed = given('--seed', kAttackSeed);
  const rows = await runFuzzers({ seed, seconds });
  return rows === null ? lacking('fuzz', 'no clang with libFuzzer on this machine') : sum(rows);
}

const kEmulated = inRoot('build', 'emulator', 'balora_cuda.so');

/** The targets of the emulated device where it has been built before: the tests that find it there need it as it is now. */
export const emulatedIfBuilt = () => (existsSync(kEmulated) ? ['balora_cuda_emulated'] : []);

/**
 * Runs the tests of the emulated device itself, those of the CUDA kernels on it against the CPU, and vitest's tests of ops, losses,
 * optimizers and training on it.
 */
export async function runEmulated() {
  if (process.platform !== 'linux' || process.arch !== 'x64') {
    return lacking('emulated', 'the emulated device works on linux-x64 only');
  }
  const targets = ['balora_cuda_emulated', 'balora_device_tests', 'balora_emulator_tests'];
  await buildNative({ targets: [...targets, 'balora'] });
  const plugin = { BALORA_CUDA_PLUGIN: kEmulated };
  const oneDevice = { ...plugin, BALORA_EMULATOR_DEVICES: '1' }; // like a machine with one GPU
  return sum([
    await cases('emulated', 'release/balora_emulator_tests'),
    await cases('emulated', 'release/balora_device_tests', { env: plugin }),
    await cases('emulated', 'release/balora_device_tests', { env: oneDevice, only: 'staging*' }),
    // The variable would put the project `cuda` in the place of this one.
    tests('emulated', ['cuda-emulated'], { BALORA_CUDA_PLUGIN: undefined }),
  ]);
}

/** Runs vitest's tests that need no order, in continuous integration by the Node whose turn it is. */
export async function runUnit() {
  const version = nodeNow();
  const node = await ensureNode(version);
  say(`by Node ${version}`);
  return tests('unit', ['unit'], {}, node);
}

/** Runs vitest's files that take half a minute or more. */
export const runLong = () => tests('long', ['long']);

/** Runs vitest's tests that start processes, and those that measure time or memory, one file of these at a time. */
export const runProcesses = () => tests('processes', ['processes', 'alone']);

/** Limits under which loops over rows run as compiled for x86-64-v3 and for x86-64 (native/kernels/cpu/runtime/levels.h). */
const kLoopLimits = ['AVX2', 'SSE41'];

const kLevelProjects = Object.keys(kLeftOutLevels);

/**
 * Runs the C++ tests with the row loops of x86-64-v3 and of x86-64 alone, and vitest's tests of products on each level of instructions
 * that this processor has beside its best, which `cpp` and `unit` run.
 */
export async function runLevels() {
  const run = kLevelProjects.filter((name) => !kLeftOutLevels[name]());
  const rows = kLevelProjects
    .filter((name) => !run.includes(name))
    .map((name) =>
      lacking(`levels: ${name}`, "this processor lacks it, or it is the processor's best"),
    );
  const loops = [];
  for (const limit of kLoopLimits) {
    const env = { ONEDNN_MAX_CPU_ISA: limit, BALORA_TEST_ISA_CHILD: '1' };
    loops.push(await cases('levels', 'release/balora_tests', { env, except: kOlderInstructions }));
  }
  return sum([...loops, ...(run.length > 0 ? [tests('levels', run)] : []), ...rows]);
}

/**
 * Builds every CUDA file for every architecture with warnings as errors, and checks that no kernel spills or exceeds the limits. Then
 * checks that the plug-in links no CUDA library, and without a GPU reports what is missing.
 */
export async function runNvcc() {
  const reason = nvccMissing();
  if (reason) return lacking('nvcc', reason);
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
  const kernels = { passed: rows.length - failed, failed };
  return sum([kernels, await checkGenerated('gen_ptxas.mjs'), checkPlugin()]);
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

/** Compares a GPU with the CPU (`npm run test:cuda`). */
export function runGpu() {
  if (!hasGpu()) return lacking('gpu', 'no NVIDIA GPU on this machine');
  return node(inRoot('scripts', 'test_cuda.mjs'));
}

/** Runs clang-tidy over the product's C++, without OpenMP, whose GCC header clang does not read. */
export async function runTidy() {
  const folder = inRoot('build', 'tidy'); // clang cannot read the precompiled headers of GCC
  const defines = ['CMAKE_DISABLE_PRECOMPILE_HEADERS=ON', 'BALORA_UNITY=OFF'];
  await configureNative({ out: 'tidy', defines });
  const extra = ['-fno-openmp', '-Wno-unknown-pragmas', '-Wno-unused-private-field'];
  const flags = ['-quiet', '-p', folder, ...extra.map((flag) => `-extra-arg=${flag}`)];
  return program(clangTidy(), [...flags, `^${inRoot('native')}/`]);
}

/**
 * Compares the types and signatures that the sources of native/ and of cuda/ give one name: GCC's link reads the intermediate code of all,
 * and fails where two differ (-Werror=odr). It compares no bodies of functions, and only GCC has the warning.
 */
export async function runOdr() {
  if (!comparesDefinitions()) return lacking('odr', 'the compiler of this machine is not GCC');
  const defines = ['BALORA_ODR=ON', 'BALORA_ADDON=OFF'];
  await buildNative({ out: 'odr', targets: ['balora_odr'], defines });
  return single(true);
}

/** Checks the registry's signatures of the installed npm packages, where the registry has any and can be reached. */
export function runSignatures() {
  const options = { cwd: root, encoding: 'utf8' };
  // By default npm waits a minute between its attempts.
  const waits = ['--fetch-retry-mintimeout=1000', '--fetch-retry-maxtimeout=1000'];
  const { status, stdout, stderr } = spawnSync('npm', ['audit', 'signatures', ...waits], options);
  const text = `${stdout ?? ''}${stderr ?? ''}`;
  if (status === 0) {
    say(text.trim());
    return single(true);
  }
  // npm fails in these ways where there is nothing to check, and names the packages where a signature is wrong.
  const none =
    /found no (dependencies|installed dependencies)|No registry keys|E404|ENOTFOUND|ECONN|EAI_AGAIN|network/i;
  if (none.test(text))
    return lacking('signatures', 'the registry has no signatures, or cannot be reached');
  say(red(text.trim()));
  return single(false);
}

/** Builds the addon once more by binding.gyp, without CMake, loads it and asks for its signatures. */
export function runGyp() {
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

/** The root of Debian 12: what the set-up installs there, doctest, the oldest clang that builds balora, and what makes it quick. */
const kDebian12 = {
  name: 'debian12',
  suite: 'bookworm',
  packages: [
    ...['make', 'g++', 'cmake', 'libdnnl-dev', 'libeigen3-dev', 'doctest-dev'],
    ...['clang-16', 'libomp-16-dev', 'ninja-build', 'ccache'],
  ],
  node: '22',
};

/** Where a root shows the checkout: the same path for every clone, so that they share what ccache keeps. */
const kInRoot = '/root/balora';

/**
 * The calls of programs in a root, in the checkout, which cannot be changed from there; its build/ is build/NAME of this one. Warnings
 * are errors there.
 */
function checkoutIn(folder, name) {
  const [build, cache] = [inRoot('build', name), join(cacheFolder(), 'roots', 'cache')];
  for (const place of [build, cache]) mkdirSync(place, { recursive: true });
  const mounts = [
    { from: root, to: kInRoot },
    { from: build, to: `${kInRoot}/build`, writable: true },
    { from: cache, to: '/root/.cache', writable: true }, // ccache's, and that of accepts.mjs
  ];
  return (command, variables = {}) =>
    insideRoot(folder, command, {
      ...{ cwd: kInRoot, mounts },
      env: { CI: 'true', ...variables },
    });
}

/** Checks in a root of Debian 12 that clang 16 accepts every source of native/, builds the addon and runs the C++ tests. */
export async function runDebian12() {
  const { folder, why } = await rootFor(() => ensureRoot(kDebian12));
  if (folder === null) return lacking('debian12', why);
  const inside = checkoutIn(folder, 'debian12');
  const runs = (command, variables) => {
    const { program: file, args, env } = inside(command, variables);
    return single(
      spawnSync(file, args, { stdio: ['ignore', 'inherit', 'inherit'], env }).status === 0,
    );
  };
  // First, since it names what is missing in every source, where a build ends at the first.
  const accepted = runs(['node', 'scripts/support/accepts.mjs'], { CXX: 'clang++-16' });
  const built = runs(['npm', 'run', 'build:native']);
  const rows = [accepted, built];
  if (built.failed === 0) {
    const executable = (args, variables) =>
      inside([`${kInRoot}/build/release/balora_tests`, ...args], variables);
    rows.push(await cases('debian12', executable, { beside: kOlderInstructions }));
  }
  const total = sum(rows);
  if (total.failed === 0) {
    const day = new Date().toISOString().slice(0, 10);
    const commit = capture('git', ['rev-parse', '--short=8', 'HEAD']);
    say(`The row of Debian 12 in docs/platforms.md can say: ${day}, \`${commit}\``);
  }
  return total;
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
  return nodeBeside(inRoot('scripts', script), '--check');
}

const biome = bin('@biomejs/biome', 'bin/biome');

/** Checks the types of everything that tsconfig.json includes. */
export const runTypes = () =>
  nodeBeside(bin('typescript', 'bin/tsc'), '--noEmit', '-p', 'tsconfig.json');

/** Runs biome's rules, and the rules of who may import whom. */
export async function runLint() {
  const cruiser = bin('dependency-cruiser', 'bin/dependency-cruise.mjs');
  return sum([
    await nodeBeside(biome, 'lint', '--error-on-warnings'),
    await nodeBeside(cruiser, '--config', '.dependency-cruiser.mjs', ...kCruised),
  ]);
}

/** The folders whose imports .dependency-cruiser.mjs has rules for. */
const kCruised = ['lib', 'bench/harness'];

/** Checks the format of TypeScript, JavaScript and JSON. */
export const runFormatTs = () => nodeBeside(biome, 'check', '--linter-enabled=false');

/** Checks the format of C++. */
export const runFormatCpp = () =>
  besideOthers(`clang-format-${kClangFormat}`, ['--dry-run', '-Werror', ...nativeFiles()]);
