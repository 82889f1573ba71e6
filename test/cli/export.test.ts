/** `balora export`: the adapter of a checkpoint as a PEFT folder, in the bytes that a run of that many steps writes. */
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { balora } from '../support/run_cli.ts';
import { writeTinyCheckpoint } from '../support/tiny_checkpoint.ts';

let folder: string;
let model: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'balora-export-'));
  model = join(folder, 'model');
  await writeTinyCheckpoint(model);
  const data = join(folder, 'd.jsonl');
  const rows = Array.from({ length: 8 }, (_, i) => ({
    prompt: `a${i}`,
    response: `${'bc'.repeat(i % 3)}d`,
  }));
  await writeFile(data, rows.map((row) => JSON.stringify(row)).join('\n'));
  for (const steps of [3, 5]) {
    const { code } = await balora([
      ...['train', '--model', model, '--data', data, '--output', join(folder, `${steps}`)],
      ...['--method', 'pissa', '--r', '2', '--max-steps', `${steps}`, '--save-steps', '3'],
      ...[
        '--prompt-template',
        'none',
        '--lr-scheduler-type',
        'constant',
        '--learning-rate',
        '0.01',
      ],
    ]);
    expect(code).toBe(0);
  }
});
afterAll(() => rm(folder, { recursive: true }));

const exported = (output: string, ...more: string[]) =>
  balora([
    ...['export', '--model', model, '--output', join(folder, output), '--adapter'],
    ...[join(folder, '5/run/checkpoints/step-3'), ...more],
  ]);

it('writes the adapter of a checkpoint', async () => {
  const { code, out, err } = await exported('third');
  expect(out).toBe(`written to ${join(folder, 'third')}\n`);
  expect(err).toMatch(/^warning: .*step-3: this is the adapter of step 3 of 5 of a run\n$/);
  expect(code).toBe(0);
  for (const name of ['adapter_config.json', 'adapter_model.safetensors']) {
    const [mine, theirs] = ['third', '3'].map((at) => readFile(join(folder, at, name)));
    expect(await mine, name).toEqual(await theirs);
  }
});

it('writes the residual form', async () => {
  expect((await exported('pair', '--export', 'residual')).code).toBe(0);
  expect((await readdir(join(folder, 'pair'))).sort()).toEqual([
    ...['.balora-export.json', 'adapter_config.json', 'adapter_model.safetensors'],
    ...['initial', 'residual'],
  ]);
  expect(await readdir(join(folder, 'pair', 'residual'))).toContain('tokenizer.json');
});

it('refuses a folder that is not empty, and a form that there is not', async () => {
  expect((await exported('3')).err).toMatch(/^error: output folder .*3 is not empty/);
  const plain = await balora([
    ...['export', '--model', model, '--adapter', join(folder, '3'), '--export', 'residual'],
    ...['--output', join(folder, 'none')],
  ]);
  expect(plain.err).toMatch(/export "residual" is for adapters that start from the weights/);
  await expect(readdir(join(folder, 'none'))).rejects.toThrow('ENOENT');
});

it('writes a model whose weights were all trained, for other programs', async () => {
  const [data, full] = [join(folder, 'd.jsonl'), join(folder, 'full')];
  const trained = await balora([
    ...['train', '--model', model, '--data', data, '--output', full, '--method', 'full'],
    ...['--max-steps', '2', '--prompt-template', 'none', '--learning-rate', '0.01'],
  ]);
  expect(trained.code).toBe(0);
  const folderOf = join(folder, 'whole');
  const whole = await balora([
    'export',
    '--model',
    full,
    '--to',
    'safetensors',
    '--output',
    folderOf,
  ]);
  expect(whole).toMatchObject({ code: 0, out: `written to ${folderOf}\n` });
  const weights = (path: string) => readFile(join(path, 'model.safetensors'));
  expect(await weights(folderOf)).toEqual(await weights(full));
  expect(await readdir(folderOf)).toContain('tokenizer.json');
});

it('refuses a model alone where an adapter is needed, and the adapter of a run that made none', async () => {
  const alone = (...more: string[]) =>
    balora(['export', '--model', model, '--output', join(folder, 'alone'), ...more]);
  for (const to of ['peft', 'gguf-lora', 'mlx']) {
    const { code, err } = await alone('--to', to);
    expect(err).toMatch(
      new RegExp(
        `^error: export to ${to}: it is made of an adapter, and none is given; give --adapter`,
      ),
    );
    expect(code).toBe(1);
  }
  const { err } = await alone('--adapter', join(folder, 'full'), '--to', 'gguf');
  expect(err).toMatch(
    /full: its run trained every weight, so it is a model and no adapter; give it/,
  );
});
