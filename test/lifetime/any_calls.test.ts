// No arguments crash the process: thousands of valid and invalid calls of the addon's functions in fixed sequences.
// BALORA_SEEDS=100-199 in the environment runs other sequences.
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';
import { runProgram } from '../support/child.ts';

const kCalls = 3000;
const kPlugin = fileURLToPath(new URL('../../build/emulator/balora_cuda.so', import.meta.url));

const kSeeds = { cpu: '1-20', ...(existsSync(kPlugin) ? { cuda: '1-2' } : {}) };

function runs(device: string, standard: string): { device: string; seed: number }[] {
  const [first, last = first] = (process.env.BALORA_SEEDS ?? standard).split('-').map(Number);
  const count = (last as number) - (first as number) + 1;
  return Array.from({ length: count }, (_, i) => ({ device, seed: (first as number) + i }));
}
const kRuns = Object.entries(kSeeds).flatMap(([device, seeds]) => runs(device, seeds));

it.each(kRuns)('$device, sequence $seed', async ({ device, seed }) => {
  const { code, signal, stopped, stdout, stderr } = await runProgram(
    'test/lifetime/programs/any_calls.mjs',
    {
      args: [`${seed}`, `${kCalls}`, device],
      // Each tensor is then an allocation of its own, of which the emulator and the sanitizers know the end.
      env: { BALORA_CUDA_PLUGIN: kPlugin, BALORA_EXACT_BLOCKS: '1' },
      hangMs: 60_000,
    },
  );
  const lastLine = stdout.trimEnd().split('\n').at(-1);
  expect({ code, signal, stopped, stderr, lastLine }).toEqual({
    code: 0,
    signal: null,
    stopped: null,
    stderr: '',
    lastLine: 'done; never ran:',
  });
});
