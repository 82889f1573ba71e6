// Compares the CUDA device with the CPU on a machine with an NVIDIA GPU: `npm run test:cuda`. It checks every row of the kernel
// table (balora_device_tests), a tiny LLaMA against transformers' numbers, then whole BA-LoRA trainings. Leaves test.json and
// test.txt in build/cuda-report. In a clone it first builds what is stale, the plug-in excepted; the folder that npm run pack:cuda
// makes needs no compiler and no network. With --seconds N parts that do not fit are skipped by name.
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { ensureBench } from './support/bench_build.mjs';
import { buildNative } from './support/build_steps.mjs';
import { cudaPlugin, Report, reportOptions, runCaptured } from './support/cuda.mjs';
import { inRoot, main, SetupError, say } from './support/shell.mjs';

/** A tiny LLaMA with the numbers that transformers gives for it. */
const kGolden = inRoot('test', 'fixtures', 'architectures', 'llama-untied-gqa');

/** Trainings that are run on both devices, with the approximate seconds that each takes. */
const kTrajectories = [
  { name: 'tiny', flags: ['--shape', 'tiny'], seconds: 10 },
  { name: 'golden LLaMA', flags: ['--model', join(kGolden, 'model')], seconds: 10 },
  { name: 'smollm2-135m', flags: ['--shape', 'smollm2-135m'], seconds: 60 },
];

/** Builds the addon, the device tests and the compiled library, where their sources are present. */
async function buildInClone() {
  if (!existsSync(inRoot('CMakeLists.txt'))) return;
  await buildNative({ targets: ['balora', 'balora_device_tests'] });
  await ensureBench();
}

function deviceTests(report, budget) {
  const program = inRoot('build', 'release', 'balora_device_tests');
  if (!existsSync(program)) {
    throw new SetupError(`${program} is missing: make the pack again with "npm run pack:cuda".`);
  }
  const { status, text, seconds } = runCaptured(program, ['--no-colors=true'], { budget });
  const counts = /test cases:\s*\d+ \|\s*(\d+) passed \|\s*(\d+) failed/.exec(text);
  const [passed, failed] = counts ? counts.slice(1).map(Number) : [0, 1];
  const ok = status === 0 && failed === 0;
  report.add(
    { kind: 'rows', passed, failed, status, seconds, ...(ok ? {} : { text }) },
    `kernels against the CPU: ${passed} passed, ${failed} failed (${seconds.toFixed(0)} s)${ok ? '' : `\n${text}`}`,
  );
  return { passed, failed: ok ? 0 : Math.max(failed, 1) };
}

/** Runs a program of bench/cuda that prints one line of JSON. */
function program(file, flags, budget) {
  const command = [inRoot('bench', 'cuda', file), ...flags];
  const { status, stdout, text, seconds } = runCaptured(process.execPath, command, { budget });
  const line = stdout.trim().split('\n').at(-1);
  const result = line?.startsWith('{') ? JSON.parse(line) : { text };
  const { worst } = result;
  const said = `${status === 0 ? 'passed' : 'FAILED'}, ${worst === undefined ? text : worst.toExponential(1)}`;
  const counts = status === 0 ? { passed: 1, failed: 0 } : { passed: 0, failed: 1 };
  return {
    part: { status, seconds, ...result },
    said: `${said} (${seconds.toFixed(0)} s)`,
    counts,
  };
}

function golden(report, { device, budget }) {
  const { part, said, counts } = program(
    'golden.mjs',
    ['--device', device, '--golden', kGolden],
    budget,
  );
  const title = 'the golden LLaMA in f32, largest error relative to its tolerance';
  report.add({ kind: 'golden', ...part }, `${title}: ${said}`);
  return counts;
}

function trajectory(report, { name, flags, dtype }, { device, budget }) {
  const all = ['--device', device, ...flags, '--dtype', dtype];
  const { part, said, counts } = program('trajectory.mjs', all, budget);
  const title = `training ${name} ${dtype} against the CPU, largest relative difference`;
  report.add({ kind: 'trajectory', name, dtype, ...part }, `${title}: ${said}`);
  return counts;
}

/** Runs a part, or reports its name and why it is skipped. */
function within(budget, report, [name, wanted, run]) {
  const refusal = budget.refusal(wanted);
  if (refusal === null) return { skipped: 0, ...run() };
  report.add({ kind: 'skipped', name, refusal }, `${name}: ${refusal}`);
  return { passed: 0, failed: 0, skipped: 1 };
}

await main(async (args) => {
  const options = reportOptions(args);
  const { output, budget } = options;
  say(`plug-in: ${cudaPlugin()}`);
  await buildInClone();
  const report = new Report('test', output);
  const trainings = kTrajectories.flatMap((one) =>
    ['f32', 'bf16'].map((dtype) => {
      const run = () => trajectory(report, { ...one, dtype }, options);
      return [`training ${one.name} ${dtype}`, one.seconds, run];
    }),
  );
  const parts = [
    ['the golden LLaMA', 10, () => golden(report, options)],
    ['kernels against the CPU', 60, () => deviceTests(report, budget)],
    ...trainings,
  ];
  const counts = parts.map((part) => within(budget, report, part));
  const sum = (key) => counts.reduce((total, one) => total + one[key], 0);
  say(`${sum('passed')} passed, ${sum('failed')} failed, ${sum('skipped')} skipped`);
  return sum('failed') > 0 ? 1 : 0;
});
