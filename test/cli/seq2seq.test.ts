/** `--task seq2seq-lm` end to end on a tiny t5: train, evaluate, resume, merge, and what is refused. */
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { balora } from '../support/run_cli.ts';
import { tinySeq2SeqRows, writeTinySeq2Seq } from '../support/tiny_seq2seq.ts';

let folder: string;
let model: string;
let data: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'balora-seq2seq-'));
  model = join(folder, 'model');
  data = join(folder, 'data.jsonl');
  await writeTinySeq2Seq(model);
  await writeFile(
    data,
    tinySeq2SeqRows(12)
      .map((row) => JSON.stringify(row))
      .join('\n'),
  );
});
afterAll(() => rm(folder, { recursive: true }));

const task = ['--task', 'seq2seq-lm'];
const train = (output: string, ...more: string[]) => [
  ...['train', ...task, '--model', model, '--data', data, '--output', join(folder, output)],
  ...['--r', '4', '--per-device-train-batch-size', '2', '--learning-rate', '0.01'],
  ...['--max-source-length', '16', '--max-target-length', '8', '--max-steps', '6', ...more],
];

it('trains an adapter and all weights, evaluates, and reports the dropout that it leaves out', async () => {
  const { code, err } = await balora(train('a', '--eval-data', data));
  expect(err).toMatch(/dropout_rate/);
  expect(err).toMatch(/12 examples \(prompt -> response\)/);
  expect(code).toBe(0);
  const config = JSON.parse(await readFile(join(folder, 'a', 'adapter_config.json'), 'utf8'));
  expect(config.task_type).toBe('SEQ_2_SEQ_LM');
  const evaluated = await balora([
    ...['evaluate', ...task, '--model', model, '--adapter', join(folder, 'a')],
    ...['--data', data, '--json', '--max-source-length', '16', '--max-target-length', '8'],
  ]);
  expect(evaluated).toMatchObject({ code: 0 });
  const result = JSON.parse(evaluated.out) as { loss: number; kl: number; examples: unknown[] };
  expect(result.examples).toHaveLength(12);
  expect(result.kl).toBeGreaterThan(0);
  const base = await balora(['evaluate', ...task, '--model', model, '--data', data, '--json']);
  expect(result.loss).toBeLessThan((JSON.parse(base.out) as { loss: number }).loss);
  expect((await balora(train('lora', '--method', 'lora'))).code).toBe(0);
  const whole = train('full', '--method', 'full').filter((arg) => arg !== '--r' && arg !== '4');
  expect((await balora(whole)).code).toBe(0);
});

it('ends with the same numbers after a stop and --resume', async () => {
  expect((await balora(train('whole', '--save-steps', '3'))).code).toBe(0);
  expect((await balora(train('parts', '--save-steps', '3'))).code).toBe(0);
  await rm(join(folder, 'parts', 'run', 'checkpoints', 'step-6'), { recursive: true });
  expect((await balora(train('parts', '--save-steps', '3', '--resume'))).code).toBe(0);
  const adapter = (name: string) => readFile(join(folder, name, 'adapter_model.safetensors'));
  expect((await adapter('parts')).equals(await adapter('whole'))).toBe(true);
});

it('merges into a model that evaluates as the adapter does', async () => {
  expect((await balora(train('adapter'))).code).toBe(0);
  const merged = join(folder, 'merged');
  const adapter = join(folder, 'adapter');
  expect(
    (await balora(['merge', '--model', model, '--adapter', adapter, '--output', merged])).code,
  ).toBe(0);
  const loss = async (...more: string[]) => {
    const { out } = await balora(['evaluate', ...task, '--data', data, '--json', ...more]);
    return (JSON.parse(out) as { loss: number }).loss;
  };
  expect(await loss('--model', merged)).toBeCloseTo(
    await loss('--model', model, '--adapter', adapter),
    4,
  );
});

it.each([
  [['--packing'], '--packing has no meaning for --task seq2seq-lm'],
  [['--max-length', '9'], '--max-length has no meaning for --task seq2seq-lm'],
  [['--glue', 'sst2'], '--glue has no meaning for --task seq2seq-lm'],
  [
    ['--capture-graphs'],
    '--capture-graphs: graphs need a GPU, and the device is cpu; leave --capture-graphs out',
  ],
])('%s is refused', async (more, message) => {
  const { code, err } = await balora(train('refused', ...more));
  expect(code).not.toBe(0);
  expect(err).toContain(message);
});

it('a model of another task is refused with an error that names the right task', async () => {
  const { code, err } = await balora([
    ...['train', '--model', model, '--data', data, '--output', join(folder, 'wrong')],
  ]);
  expect(code).not.toBe(0);
  expect(err).toMatch(/t5/);
});
