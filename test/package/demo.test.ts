// The demo as `npm run demo` runs it, with a few steps: it ends well, its table has a row a method, and each left its adapter.
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { type ChildResult, runProgram } from '../support/child.ts';

const kMethods = ['lora', 'pissa', 'balora'];

let folder = '';
let result: ChildResult;

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'balora-demo-'));
  result = await runProgram('examples/demo/demo.mjs', {
    args: ['--steps', '2', '--batch-size', '2', '--held-out', '8', '--output', folder],
    hangMs: 30_000,
    limitMs: 170_000,
  });
}, 180_000);

afterAll(() => rmSync(folder, { recursive: true, force: true }));

it('ends well and prints a row of numbers for each method', () => {
  expect(result, result.stderr).toMatchObject({ code: 0, stopped: null });
  const rows = result.stdout.split('\n').map((line) => line.trim().split(/ {2,}/));
  const row = (label: string): string[] => rows.find(([first]) => first === label) ?? [];
  expect(rows).toContainEqual([
    'task loss',
    'drift (KL)',
    'entropy',
    'eff. rank',
    'time',
    'memory',
  ]);
  const before = Number(row('before')[1]);
  expect(before).toBeGreaterThan(1);
  expect(before).toBeLessThan(Math.log(4096)); // better than a guess: the checkpoint has learned
  for (const label of ['LoRA', 'PiSSA', 'BA-LoRA']) {
    const [, loss, drift, entropy, rank, time, memory] = row(label);
    expect(Math.abs(Number(loss) - before), label).toBeLessThan(0.5);
    expect(Number(drift), label).toBeGreaterThanOrEqual(0);
    expect(Number(entropy), label).toBeGreaterThan(0);
    expect(Number(rank), label).toBeGreaterThan(1);
    expect(time, label).toMatch(/^\d+ s$/);
    expect(memory, label).toMatch(/^\d+ MiB$/);
  }
});

it.each(kMethods)('leaves the adapter of %s, and a record of each step', (method) => {
  const read = (name: string): string => readFileSync(join(folder, method, name), 'utf8');
  // Of PiSSA and BA-LoRA the export is a LoRA of twice the rank on the untouched base.
  const expected = { peft_type: 'LORA', r: method === 'lora' ? 8 : 16 };
  expect(JSON.parse(read('adapter_config.json'))).toMatchObject(expected);
  expect(existsSync(join(folder, method, 'adapter_model.safetensors'))).toBe(true);
  const steps = read('run/metrics.jsonl').trim().split('\n');
  expect(steps.map((line) => JSON.parse(line).step)).toEqual([1, 2]);
});
