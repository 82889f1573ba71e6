// The benchmark command as a user calls it, at a tiny size: rows in processes of their own, the JSON report, comparison.
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { kMicroNames } from '../../../bench/harness/kernels/row.ts';
import type { Report, StepRow } from '../../../bench/harness/types.ts';
import { runProgram } from '../../support/child.ts';
import { writeTinyCheckpoint } from '../../support/tiny_checkpoint.ts';

const kMain = 'build/harness/main.js';
/** Timeouts: the command prints nothing while a child process measures. */
const kPatience = { hangMs: 280_000 };

let folder = '';
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'balora-'));
  await writeTinyCheckpoint(join(folder, 'model'));
});
afterAll(() => rm(folder, { recursive: true }));

async function bench(...args: string[]): Promise<{ code: number | null; text: string }> {
  const options = { args: ['--steps', '2', ...args], ...kPatience };
  const { code, stdout, stderr } = await runProgram(kMain, options);
  return { code, text: stdout + stderr };
}

const readJson = async (path: string): Promise<Report> =>
  JSON.parse(await readFile(path, 'utf8')) as Report;

/** A replacement for the Python with torch, which reports one second for each step. */
const kStandIn = `#!/usr/bin/env node
import { readFileSync } from 'node:fs';
const [folder, ...flags] = process.argv.slice(3);
const flag = (name) => Number(flags[flags.indexOf('--' + name) + 1]);
const batches = JSON.parse(readFileSync(folder + '/batches.json', 'utf8'));
const measured = batches.slice(flag('warmup'), flag('warmup') + flag('steps'));
const tokens = measured.map((rows) => rows.reduce((sum, { ids }) => sum + ids.length, 0));
const seconds = tokens.map(() => 1);
console.log(JSON.stringify({ version: '0', threads: 1, peakBytes: 1, seconds, tokens }));
`;

describe('npm run bench', () => {
  it('measures training rows and writes them as a table and as JSON', async () => {
    const json = join(folder, 'steps.json');
    const only = 'balora-4x512,lora-gsm8k,balora-over-lora,balora-4x512-cache-teacher';
    const { code, text } = await bench('--shape', 'tiny', '--only', only, '--json', json);
    expect(text).toContain('GFLOP/token');
    expect(text).toContain('of peak');
    expect(code).toBe(0);
    const { format, machine, rows } = await readJson(json);
    expect(format).toBe(1);
    expect(machine).toMatchObject({ threads: expect.any(Number), cpu: expect.any(String) });
    expect(machine.peakBf16).toBeGreaterThan(0);
    expect(rows.map(({ name }) => name)).toEqual([
      ...['balora-4x512', 'lora-4x512', 'lora-gsm8k'],
      ...['balora-4x512-cache-teacher', 'balora-over-lora'],
    ]);
    const row = rows[0] as StepRow;
    expect(row).toMatchObject({ kind: 'step', tokens: 2048, supervisedTokens: 1024 });
    expect(row.tokensPerSecond).toBeGreaterThan(0);
    expect(row.peakBytes).toBeGreaterThan(1e7);
    expect(row.seconds.samples).toBe(2);
    const { data, other, ...phases } = row.split;
    for (const seconds of Object.values(phases)) expect(seconds).toBeGreaterThan(0);
    const parts = Object.values(row.split).reduce((sum, part) => sum + part, 0);
    expect(parts).toBeGreaterThan(0.5 * row.seconds.median);
    expect(data + other).toBeGreaterThanOrEqual(0);
    expect(row.rooflineShare).toBeGreaterThan(0);
    expect(row.ceilingSeconds).toBeGreaterThan(row.rooflineSeconds);
    expect(rows[2]?.kind === 'step' && rows[2].notes.join()).toContain('synthetic');
    const [, plain, , cached] = rows as StepRow[];
    expect(cached?.flopsPerToken).toBe(plain?.flopsPerToken); // there are no teacher passes
    const ratio = rows.find(({ name }) => name === 'balora-over-lora');
    expect(ratio?.kind === 'ratio' && ratio.value).toBeGreaterThan(0);
  });

  it('measures every kernel, and fails on a regression past the margin', async () => {
    const json = join(folder, 'micro.json');
    const first = await bench('--shape', 'tiny', '--only', 'micro', '--json', json);
    expect(first.code).toBe(0);
    const report = await readJson(json);
    expect(report.rows.map(({ name }) => name)).toEqual(kMicroNames);
    for (const row of report.rows) {
      expect(row.kind === 'micro' && row.rate > 0 && row.seconds.median > 0).toBe(true);
    }
    const better = report.rows.map((row) =>
      row.kind === 'micro'
        ? { ...row, seconds: { ...row.seconds, median: row.seconds.median / 1e6 } }
        : row,
    );
    await writeFile(json, JSON.stringify({ ...report, rows: better }));
    const again = ['--shape', 'tiny', '--only', 'micro-rope', '--json', join(folder, 'x.json')];
    const worse = await bench(...again, '--compare', json);
    expect(worse.text).toContain('REGRESSION');
    expect(worse.code).toBe(1);
    const same = await bench(...again, '--compare', json, '--margin', '1e12');
    expect(same.text).toContain('0 of 1 figures');
    expect(same.code).toBe(0);
    const other = ['--shape', 'tiny', '--only', 'micro-fill', '--json', join(folder, 'x.json')];
    await writeFile(json, JSON.stringify({ ...report, rows: better.slice(0, 1) }));
    expect((await bench(...other, '--compare', json)).code).toBe(1); // the reports have no row in common
  });

  it('gives both sides the same micro-batches where these differ in size', async () => {
    const python = join(folder, 'python.mjs');
    await writeFile(python, kStandIn, { mode: 0o755 });
    const json = join(folder, 'paired.json');
    const args = ['--shape', 'tiny', '--only', 'lora-gsm8k', '--pairs', '1', '--torch-steps', '1'];
    const { code, text } = await bench(...args, '--torch', python, '--json', json);
    expect(code, text).toBe(0);
    const row = (await readJson(json)).rows[0] as StepRow;
    expect(row.seconds.samples).toBe(2); // --steps, not --torch-steps
    expect(row.torch?.tokensPerSecond.median).toBeCloseTo(row.tokens, 9);
  });

  it('measures steps of methods over those of LoRA, and the starts of adapters', async () => {
    const json = join(folder, 'methods.json');
    const starts = ['start-milora', 'start-eva', 'start-corda', 'start-lora-ga-quick'];
    const only = ['step-dora', 'step-vera', 'step-lora-fa-r128', ...starts].join();
    const { code, text } = await bench('--shape', 'tiny', '--only', only, '--json', json);
    expect(code, text).toBe(0);
    const { rows } = await readJson(json);
    const ratio = (name: string, meaning: RegExp) => ({
      ...{ kind: 'ratio', name, value: expect.any(Number) },
      meaning: expect.stringMatching(meaning),
    });
    expect(rows).toMatchObject([
      ratio('step-dora', /^time of a training step over LoRA's, r 16/),
      ratio('step-vera', /^time of a training step over LoRA's, r 16/),
      ratio('step-lora-fa-r128', /^time of a training step over LoRA's, r 16/),
      { kind: 'start', name: 'start-milora', meaning: 'AdapterModel.create() at r 16' },
      ratio(
        'start-eva',
        /^time of calibration and start over that of as many whole forwards, \d+, alone/,
      ),
      ratio(
        'start-corda',
        /^time of calibration and start over that of as many whole forwards, 8, alone/,
      ),
      ratio('start-lora-ga-quick', /over that of the gradients alone/),
    ]);
    for (const row of rows) if (row.kind === 'ratio') expect(row.value).toBeGreaterThan(0);
  });

  it('measures the growth of a base in blocks beside one in values', async () => {
    const json = join(folder, 'bases.json');
    const { code, text } = await bench('--shape', 'tiny', '--only', 'growth-bases', '--json', json);
    expect(code, text).toBe(0);
    const { growth } = await readJson(json);
    expect(growth).toMatchObject([
      { shape: 'tiny', axis: 'length', points: [{ x: 128 }, { x: 256 }, { x: 512 }] },
      { shape: 'tiny', axis: 'length', baseFormat: 'nf4' },
    ]);
    expect(growth[0]?.baseFormat).toBeUndefined();
    expect(text).toContain('tiny nf4 length');
  });

  it('measures rows for GPUs when they are chosen by name', async () => {
    const json = join(folder, 'named.json');
    const names = ['pissa-converged-r128', 'pissa-niter-16-r128', 'lora-overhead-r128'];
    const heads = ['micro-head-losses-task-8192x128k', 'micro-head-losses-8192x128k'];
    const only = ['balora-4x512-no-graphs', ...names, ...heads].join();
    const { code, text } = await bench('--shape', 'tiny', '--only', only, '--json', json);
    expect(code, text).toBe(0);
    const { rows } = await readJson(json);
    expect(rows).toMatchObject([
      { kind: 'unavailable', name: 'balora-4x512-no-graphs', reason: 'graphs are for GPUs' },
      { kind: 'pissa', name: names[0], rank: 16 },
      { kind: 'pissa', name: names[1], rank: 16 },
      { kind: 'ratio', name: 'lora-overhead-r128', meaning: expect.stringContaining('r 128') },
      ...heads.map((name) => ({ kind: 'micro', name, shapes: expect.stringMatching(/^h 64x64/) })),
    ]);
    for (const row of rows) {
      if (row.kind === 'ratio') expect(row.value).toBeGreaterThan(1);
      if (row.kind === 'micro') expect(row.extraBytes).toBeGreaterThan(64 * 64 * 2); // dh at least
    }
    expect(text).toContain('extra MiB');
  });

  it('measures the start with a real folder, and prints JSON to standard output', async () => {
    const args = ['--model', join(folder, 'model'), '--shape', 'tiny', '--only', 'start'];
    const options = { args: [...args, '--json', '-'], ...kPatience };
    const { stdout } = await runProgram(kMain, options);
    const { rows } = JSON.parse(stdout) as Report;
    expect(rows).toMatchObject([{ kind: 'start', name: 'start-lora' }]);
    expect(rows[0]?.kind === 'start' && rows[0].seconds.median).toBeGreaterThan(0.05);
  });

  it('measures PiSSA, and reports rows that are not available', async () => {
    const json = join(folder, 'pissa.json');
    await bench('--shape', 'tiny', '--only', 'pissa,start', '--json', json);
    const { rows } = await readJson(json);
    expect(rows).toMatchObject([
      { kind: 'pissa', name: 'pissa-converged', modules: 14 },
      { kind: 'pissa', name: 'pissa-niter-16', modules: 14 },
      { kind: 'unavailable', name: 'start-lora', reason: expect.stringContaining('--model') },
    ]);
    const [converged, sixteen] = rows.map((row) => (row.kind === 'pissa' ? row.capturedEnergy : 0));
    expect(converged).toBeGreaterThan(0.2);
    expect(converged).toBeLessThan(1);
    expect(sixteen).toBeCloseTo(converged as number, 3);
  });

  it("measures an encoder's step", async () => {
    const json = join(folder, 'encoder.json');
    await bench('--shape', 'tiny', '--only', 'minilm-sst2', '--dtype', 'f32', '--json', json);
    const row = (await readJson(json)).rows[0] as StepRow;
    expect(row).toMatchObject({ kind: 'step', name: 'minilm-sst2', dtype: 'f32' });
    expect(row.tokens).toBeCloseTo((288 + 346) / 2, 9); // the sixth and seventh micro-batch
    expect(row.split.teacher).toBe(0);
    expect(row.split.backward).toBeGreaterThan(0);
    expect(row.notes.join()).toMatch(/random weights.*SST-2/);
  });

  it('creates the folder of the JSON file, or fails before it measures anything', async () => {
    const json = join(folder, 'new', 'folder', 'start.json');
    expect((await bench('--shape', 'tiny', '--only', 'start', '--json', json)).code).toBe(0);
    expect((await readJson(json)).rows).toMatchObject([{ kind: 'unavailable' }]);
    const { code, text } = await bench('--only', 'start', '--json', join(json, 'x.json'));
    expect(code).toBe(2);
    expect(text).toMatch(/--json \S*x\.json: its folder cannot be made/);
    expect(text).not.toContain('measuring');
  });

  it('shows in its help how it is called in a clone', async () => {
    const { code, text } = await bench('--help');
    expect(code).toBe(0);
    expect(text).toMatch(/^Usage: npm run bench -- \[options\]\n/);
  });

  it('refuses an unknown row before it measures anything', async () => {
    const { code, text } = await bench('--only', 'balora-4x513');
    expect(code).toBe(2);
    expect(text).toContain('balora-4x512');
    expect(text).not.toContain('measuring');
  });
});
