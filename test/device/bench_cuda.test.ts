// `npm run bench -- --device cuda` and the golden program of `npm run test:cuda` on the emulated device, at tiny sizes: the code
// paths that only a GPU has (graphs, the device's clock, its memory).
import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { Report } from '../../bench/harness/types.ts';
import { runProgram } from '../support/child.ts';

const kPlugin = process.env.BALORA_CUDA_PLUGIN;
const kPatience = { hangMs: 300_000 };

describe.skipIf(kPlugin === undefined)('programs for a GPU', () => {
  let folder = '';
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'balora-'));
  });
  afterAll(() => rm(folder, { recursive: true }));

  it('the benchmark times kernels by the clock of the device, and measures their memory there', async () => {
    const json = join(folder, 'micro.json');
    const only = 'micro-head-losses-8192x128k,micro-adamw-many,micro-grad-norm-many';
    const args = ['--device', 'cuda', '--shape', 'tiny', '--only', only, '--json', json];
    const run = await runProgram('build/harness/main.js', { args, ...kPatience });
    expect(run.code, run.stderr).toBe(0);
    const { machine, rows } = JSON.parse(await readFile(json, 'utf8')) as Report;
    expect(machine.device).toMatch(/sm_/);
    expect(rows).toHaveLength(3);
    for (const row of rows) {
      if (row.kind !== 'micro') throw new Error(row.kind);
      expect(row.seconds.median).toBeGreaterThan(0);
      expect(row.rate).toBeGreaterThan(0);
    }
    // The extra memory includes dh (64,64) in bf16, and logits.
    const head = rows.find(({ name }) => name === 'micro-head-losses-8192x128k');
    expect(head?.kind === 'micro' && head.extraBytes).toBeGreaterThan(64 * 64 * 2);
  });

  it('the golden LLaMA has the values of transformers', async () => {
    const args = ['--device', 'cuda'];
    const run = await runProgram('bench/cuda/golden.mjs', { args, ...kPatience });
    const result = JSON.parse(run.stdout);
    expect(result).toMatchObject({ golden: 'llama-untied-gqa', passed: true });
    expect(result.worst).toBeLessThan(1);
    expect(run.code, run.stderr).toBe(0);
  });

  it('the golden program fails where a value differs', async () => {
    const golden = join(folder, 'golden');
    await cp('test/fixtures/architectures/llama-untied-gqa', golden, { recursive: true });
    const facts = join(golden, 'expected.json');
    const expected = JSON.parse(await readFile(facts, 'utf8'));
    await writeFile(facts, JSON.stringify({ ...expected, loss: expected.loss + 1e-3 }));
    const args = ['--device', 'cuda', '--golden', golden];
    const run = await runProgram('bench/cuda/golden.mjs', { args, ...kPatience });
    expect(run.code).toBe(1);
    expect(JSON.parse(run.stdout).passed).toBe(false);
  });
});
