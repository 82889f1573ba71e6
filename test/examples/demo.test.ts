// The demo as `npm run demo` runs it, with a few steps: it succeeds, its table has a row per method, and each method leaves its
// adapter, also with a model of the user's. The script that made the demo's checkpoint makes the same bytes again.
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { type ChildResult, runProgram } from '../support/child.ts';
import { writeTinyCheckpoint } from '../support/tiny_checkpoint.ts';

const kMethods = ['lora', 'pissa', 'balora'];

/** The label and the numbers in each line of a table. */
const tableOf = ({ stdout }: ChildResult): string[][] =>
  stdout.split('\n').map((line) => line.trim().split(/ {2,}/));

let folder = '';
let result: ChildResult;

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'balora-demo-'));
  result = await runProgram('examples/demo/demo.mjs', {
    args: ['--steps', '2', '--batch-size', '2', '--held-out', '8', '--output', folder],
    hangMs: 30_000,
  });
});

afterAll(() => rmSync(folder, { recursive: true, force: true }));

it('succeeds and prints a row of numbers for each method', () => {
  expect(result, result.stderr).toMatchObject({ code: 0, stopped: null });
  const rows = tableOf(result);
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
  expect(before).toBeLessThan(Math.log(4096)); // the checkpoint is better than a uniform guess
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

it('ends with a text of the model before tuning and of each adapter', () => {
  const lines = result.stdout.trimEnd().split('\n').slice(-5);
  expect(lines[0]).toBe('"The whale", continued with the most likely tokens:');
  const texts = lines.slice(1).map((line) => line.split(/ {2,}/));
  expect(texts.map(([label]) => label)).toEqual(['before', 'LoRA', 'PiSSA', 'BA-LoRA']);
  for (const [, text] of texts) expect(text).toMatch(/^The whale.{20,}/);
});

it.each(kMethods)('leaves the adapter of %s, and a record of each step', (method) => {
  const read = (name: string): string => readFileSync(join(folder, method, name), 'utf8');
  // PiSSA and BA-LoRA are exported as a LoRA of twice the rank for the unchanged base.
  const expected = { peft_type: 'LORA', r: method === 'lora' ? 8 : 16 };
  expect(JSON.parse(read('adapter_config.json'))).toMatchObject(expected);
  expect(existsSync(join(folder, method, 'adapter_model.safetensors'))).toBe(true);
  const steps = read('run/metrics.jsonl').trim().split('\n');
  expect(steps.map((line) => JSON.parse(line).step)).toEqual([1, 2]);
});

it('fine-tunes the model given with --model', async () => {
  const model = join(folder, 'model');
  await writeTinyCheckpoint(model);
  const output = join(folder, 'of-model');
  const tuned = await runProgram('examples/demo/demo.mjs', {
    args: [
      ...['--model', model, '--steps', '2', '--batch-size', '2', '--rank', '2'],
      ...['--held-out', '4', '--output', output],
    ],
    hangMs: 30_000,
  });
  expect(tuned, tuned.stderr).toMatchObject({ code: 0, stopped: null });
  expect(tuned.stdout).toContain(`Model         ${model} (f32)`);
  const labels = tableOf(tuned).map(([label]) => label);
  expect(labels).toEqual(expect.arrayContaining(['before', 'LoRA', 'PiSSA', 'BA-LoRA']));
  for (const method of kMethods) {
    const config = readFileSync(join(output, method, 'adapter_config.json'), 'utf8');
    expect(JSON.parse(config)).toMatchObject({ base_model_name_or_path: model });
  }
});

it('names an unknown option, with the usage', async () => {
  const args = ['--stepz', '2', '--output', join(folder, 'none')];
  const { code, stderr } = await runProgram('examples/demo/demo.mjs', { args });
  expect(stderr).toMatch(/^error: .*--stepz.*\nusage: npm run demo -- \[--model \.\.\.\] .*\n$/);
  expect(code).toBe(2);
});

it('has a checkpoint that its script reproduces byte for byte', async () => {
  const make = async (name: string): Promise<Map<string, Buffer>> => {
    const out = join(folder, name);
    const made = await runProgram('examples/demo/make_checkpoint.mjs', {
      args: ['--steps', '2', '--threads', '1', '--out', out],
      hangMs: 60_000,
    });
    expect(made, made.stderr).toMatchObject({ code: 0, stopped: null });
    return new Map(readdirSync(out).map((file) => [file, readFileSync(join(out, file))]));
  };
  const [first, second] = await Promise.all([make('first'), make('second')]);
  const committed = 'examples/demo/checkpoint';
  expect([...first.keys()].sort()).toEqual(readdirSync(committed).sort());
  for (const [file, bytes] of first) {
    expect(bytes.equals(second.get(file) as Buffer), file).toBe(true);
    // After two steps only the weights differ from the committed files.
    const same = bytes.equals(readFileSync(join(committed, file)));
    expect(same, file).toBe(file !== 'model.safetensors');
  }
});
