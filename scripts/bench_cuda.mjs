// Measures training on a machine with an NVIDIA GPU: `npm run bench:cuda [-- --torch PYTHON] [--seconds N]`. It reports
// tokens/s and memory of training (a LLaMA-7B shape and SmolLM2's, with graphs and without), the share of the measured cuBLAS
// peak, the cost that LoRA adds to the frozen products, PiSSA's start, the head of a large vocabulary with the memory that it
// takes, every kernel against its roofline, and the PyTorch recipe beside it where a Python with torch is named. Leaves
// bench.json and bench.txt in build/cuda-report.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { ensureBench } from './support/bench_build.mjs';
import { Report, reportOptions, runCaptured } from './support/cuda.mjs';
import { inRoot, main } from './support/shell.mjs';

const kLarge = ['balora-4x512-r128', 'lora-4x512-r128'];
const kSmall = ['balora-4x512', 'lora-4x512'];
const kHead = ['micro-head-losses-task-8192x128k', 'micro-head-losses-8192x128k'];

/** The measurements, most important first. `seconds`: approximate duration; `torch`: additional seconds with torch (absent: without). */
const kRuns = [
  { shape: 'llama-7b', only: kLarge, seconds: 90, torch: 90 },
  { shape: 'smollm2-135m', only: kSmall, seconds: 45, torch: 40 },
  { shape: 'llama-7b', only: ['lora-overhead-r128', ...kHead], seconds: 40 },
  { shape: 'llama-7b', only: ['pissa-niter-16-r128'], seconds: 50, torch: 60 },
  { shape: 'smollm2-135m', only: kSmall.map((name) => `${name}-no-graphs`), seconds: 40 },
  { shape: 'llama-7b', only: ['pissa-converged-r128'], seconds: 90 },
  { shape: 'smollm2-135m', only: ['micro'], seconds: 40 },
  { shape: 'smollm2-135m', only: ['pissa'], seconds: 30, torch: 30 },
  { shape: 'smollm2-135m', only: kLarge, seconds: 45, torch: 40 },
  { shape: 'llama-7b', only: ['micro'], seconds: 60 },
];

/** Runs one measurement, and returns its status, its report or failure, and its output. */
function measure({ shape, only, beside }, { output, torch, device, budget }) {
  const json = join(output, 'part.json');
  const flags = ['--device', device, '--shape', shape, '--json', json];
  const torchFlags = beside ? ['--torch', torch, '--pairs', '1', '--torch-steps', '3'] : [];
  const command = [inRoot('build', 'harness', 'main.js'), '--only', only.join(',')];
  const run = runCaptured(process.execPath, [...command, ...flags, ...torchFlags], { budget });
  const result = run.status === 0 ? JSON.parse(readFileSync(json, 'utf8')) : { failure: run.text };
  return { ...run, result };
}

await main(async (args) => {
  const options = reportOptions(args);
  const { output, torch, budget, shapes } = options;
  await ensureBench();
  const report = new Report('bench', output);
  let failures = 0;
  for (const { only, ...run } of kRuns) {
    const shape = shapes === 'all' ? run.shape : shapes;
    const beside = torch !== null && run.torch !== undefined;
    const title = `${shape}: ${only.join(', ')}`;
    const refusal = budget.refusal(run.seconds + (beside ? run.torch : 0));
    if (refusal !== null) {
      report.add({ kind: 'skipped', shape, only, refusal }, `== ${title}: ${refusal}`);
      continue;
    }
    const { status, text, seconds, result } = measure({ shape, only, beside }, options);
    failures += status === 0 ? 0 : 1;
    report.add(
      { kind: 'bench', shape, only, status, seconds, ...result },
      `== ${title} (${seconds.toFixed(0)} s)\n${text}`,
    );
  }
  return failures > 0 ? 1 : 0;
});
