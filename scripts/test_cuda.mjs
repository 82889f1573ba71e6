// `npm run test:cuda`: on a machine with an NVIDIA GPU, the CUDA device held to the CPU: every row of the kernel table
// (balora_device_tests), then whole BA-LoRA trainings. Leaves test.json and test.txt in build/cuda-report. In a clone it
// first builds what is stale, the plug-in excepted; the folder that npm run pack:cuda makes needs no compiler and no network.
import { existsSync } from 'node:fs';
import { buildNative, ensureTypeScript } from './support/build_steps.mjs';
import { cudaPlugin, Report, reportOptions, runCaptured } from './support/cuda.mjs';
import { inRoot, main, SetupError, say } from './support/shell.mjs';

const kTrajectories = [
  ['tiny', 'f32'],
  ['tiny', 'bf16'],
  ['smollm2-135m', 'f32'],
  ['smollm2-135m', 'bf16'],
];

/** The addon, the device tests and the compiled library, where there are sources to build them from. */
async function buildInClone() {
  if (!existsSync(inRoot('CMakeLists.txt'))) return;
  await buildNative({ targets: ['balora', 'balora_device_tests'] });
  await ensureTypeScript({ check: false });
}

function deviceTests(report) {
  const program = inRoot('build', 'release', 'balora_device_tests');
  if (!existsSync(program)) throw new SetupError(`${program} is missing.`);
  const { status, text, seconds } = runCaptured(program, ['--no-colors=true']);
  const counts = /test cases:\s*\d+ \|\s*(\d+) passed \|\s*(\d+) failed/.exec(text);
  const [passed, failed] = counts ? counts.slice(1).map(Number) : [0, 1];
  const ok = status === 0 && failed === 0;
  report.add(
    { kind: 'rows', passed, failed, status, seconds, ...(ok ? {} : { text }) },
    `kernels against the CPU: ${passed} passed, ${failed} failed (${seconds.toFixed(0)} s)${ok ? '' : `\n${text}`}`,
  );
  return { passed, failed: ok ? 0 : Math.max(failed, 1) };
}

function trajectory(report, [shape, dtype]) {
  const program = inRoot('bench', 'cuda', 'trajectory.mjs');
  const flags = ['--device', 'cuda', '--shape', shape, '--dtype', dtype];
  const { status, stdout, text, seconds } = runCaptured(process.execPath, [program, ...flags]);
  const line = stdout.trim().split('\n').at(-1);
  const result = line?.startsWith('{') ? JSON.parse(line) : { text };
  const distance = result.worst === undefined ? text : `${result.worst.toExponential(1)} apart`;
  report.add(
    { kind: 'trajectory', shape, dtype, status, seconds, ...result },
    `training ${shape} ${dtype} against the CPU: ${status === 0 ? 'passed' : 'FAILED'}, ${distance} (${seconds.toFixed(0)} s)`,
  );
  return status === 0 ? { passed: 1, failed: 0 } : { passed: 0, failed: 1 };
}

await main(async (args) => {
  const { output } = reportOptions(args);
  say(`plug-in: ${cudaPlugin()}`);
  await buildInClone();
  const report = new Report('test', output);
  const counts = [deviceTests(report), ...kTrajectories.map((one) => trajectory(report, one))];
  const sum = (key) => counts.reduce((total, one) => total + one[key], 0);
  say(`${sum('passed')} passed, ${sum('failed')} failed`);
  return sum('failed') > 0 ? 1 : 0;
});
