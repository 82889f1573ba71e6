// `npm run bench:cuda [-- --torch PYTHON]`: on a machine with an NVIDIA GPU, tokens/s and memory of training (a LLaMA-7B
// shape and SmolLM2's), the share of the measured cuBLAS peak, PiSSA's start, every kernel against its roofline, and the
// PyTorch recipe beside it where a Python with torch is named. Leaves bench.json and bench.txt in build/cuda-report.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Report, reportOptions, runCaptured } from './support/cuda.mjs';
import { inRoot, main } from './support/shell.mjs';

const kRows = ['balora-4x512-r128', 'lora-4x512-r128', 'balora-4x512', 'lora-4x512'];
const kRuns = [
  { shape: 'smollm2-135m', only: kRows },
  { shape: 'llama-7b', only: kRows.slice(0, 2) },
  { shape: 'smollm2-135m', only: ['micro'], beside: false },
  { shape: 'smollm2-135m', only: ['pissa'] },
  { shape: 'llama-7b', only: ['pissa-niter-16'], beside: false },
];

await main(async (args) => {
  const { output, torch } = reportOptions(args);
  const report = new Report('bench', output);
  let failures = 0;
  for (const { shape, only, beside = true } of kRuns) {
    const json = join(output, 'part.json');
    const flags = ['--device', 'cuda', '--shape', shape, '--json', json];
    const torchFlags =
      torch && beside ? ['--torch', torch, '--pairs', '1', '--torch-steps', '3'] : [];
    const command = [
      inRoot('dist', 'cli', 'main.js'),
      'bench',
      '--only',
      only.join(','),
      ...flags,
      ...torchFlags,
    ];
    const { status, text, seconds } = runCaptured(process.execPath, command);
    const result = status === 0 ? JSON.parse(readFileSync(json, 'utf8')) : { failure: text };
    failures += status === 0 ? 0 : 1;
    report.add(
      { kind: 'bench', shape, only, status, seconds, ...result },
      `== ${shape}: ${only.join(', ')} (${seconds.toFixed(0)} s)\n${text}`,
    );
  }
  return failures > 0 ? 1 : 0;
});
