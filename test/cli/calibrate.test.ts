/** Starts that are computed from data on the command line: by `balora train` itself, and by `balora calibrate` into a file. */
import { existsSync } from 'node:fs';
import { mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { balora } from '../support/run_cli.ts';
import { writeTinyCheckpoint } from '../support/tiny_checkpoint.ts';

let folder: string;
let model: string;
let data: string;
let other: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'balora-calibrate-'));
  model = join(folder, 'model');
  await writeTinyCheckpoint(model);
  const rows = (answer: string): string =>
    Array.from({ length: 24 }, (_, i) =>
      JSON.stringify({ question: `What is ${i}?`, answer: answer.repeat((i % 4) + 1) }),
    ).join('\n');
  [data, other] = [join(folder, 'data.jsonl'), join(folder, 'other.jsonl')];
  await writeFile(data, rows('It is ab.'));
  await writeFile(other, rows('No, it is another.'));
});
afterAll(() => rm(folder, { recursive: true }));

const common = (...more: string[]) => [
  ...['--model', model, '--data', data, '--prompt-template', 'none', '--r', '2'],
  ...['--per-device-train-batch-size', '4', '--max-length', '64', ...more],
];
const train = (output: string, ...more: string[]) => [
  ...['train', ...common('--output', join(folder, output), '--max-steps', '2', ...more)],
];

it.each(['eva', 'corda', 'lora_ga', 'lora_ga_peft'])(
  'balora train calibrates %s by itself',
  async (method) => {
    const { code, err } = await balora(train(`by-${method}`, '--method', method));
    expect([code, err]).toEqual([0, expect.stringMatching(/^completed after 2 steps/m)]);
    const written = JSON.parse(
      await readFile(join(folder, `by-${method}`, 'adapter_config.json'), 'utf8'),
    );
    expect(written).toMatchObject(
      method === 'eva' ? { init_lora_weights: 'eva', r: 2 } : { init_lora_weights: true, r: 4 },
    );
  },
);

it('balora calibrate writes the file that a run of the same data starts from', async () => {
  const file = join(folder, 'corda.safetensors');
  const options = ['--method', 'corda', '--calibration', file];
  const made = await balora(['calibrate', ...common(...options)]);
  expect([made.code, made.out]).toEqual([0, `calibration in ${file}\n`]);
  const { mtimeMs } = await stat(file);
  expect((await balora(train('with-file', ...options))).code).toBe(0);
  expect((await stat(file)).mtimeMs).toBe(mtimeMs);
  expect((await balora(train('alone', '--method', 'corda'))).code).toBe(0);
  const tensors = (name: string) => readFile(join(folder, name, 'adapter_model.safetensors'));
  expect(await tensors('with-file')).toEqual(await tensors('alone'));
  const fewer = await balora(train('fewer', ...options, '--calibration-batches', '2'));
  expect(fewer.code).toBe(2);
  expect(fewer.err).toMatch(
    /corda\.safetensors: is a calibration that was made with 6 micro-batches, not 2; give another file/,
  );
});

it('--calibration-settings are those of the start, and the quick form says what it holds', async () => {
  const settings = ['--calibration-settings', 'quick=true,direction=A2rBr,stableGamma=4'];
  const { code, err } = await balora(train('quick', '--method', 'lora_ga', ...settings));
  expect([code, err]).toEqual([
    0,
    expect.stringMatching(
      /the start holds \d+\.\d% of the gradients' squared norm on average, \d+\.\d% of that of model\.layers/,
    ),
  ]);
  const wrong = await balora(
    train('wrong', '--method', 'eva', '--calibration-settings', 'sigma=2'),
  );
  expect([wrong.code, wrong.err]).toEqual([
    2,
    expect.stringMatching(/calibrate: settings: unknown option "sigma"; known: rho, tau, whiten/),
  ]);
});

it('--calibration-data is read in the place of the training data', async () => {
  const method = ['--init-lora-weights', 'corda_kpm', '--method', 'lora'];
  const own = await balora(train('kept', ...method, '--calibration-data', other));
  expect(own.code).toBe(0);
  expect((await balora(train('own', ...method))).code).toBe(0);
  const tensors = (name: string) => readFile(join(folder, name, 'adapter_model.safetensors'));
  expect(await tensors('kept')).not.toEqual(await tensors('own'));
});

it('a run is resumed with the calibration that it began with', async () => {
  const resumable = (...more: string[]) =>
    train('resumed', '--method', 'eva', '--save-steps', '1', ...more);
  expect((await balora(resumable())).code).toBe(0);
  expect((await balora(resumable('--max-steps', '3', '--resume'))).code).toBe(0);
  const foreign = await balora(
    resumable('--max-steps', '4', '--resume', '--calibration-batches', '2'),
  );
  expect(foreign.code).toBe(2);
  expect(foreign.err).toMatch(
    /--calibration: was "\w{16}", is "\w{16}", of the data of .*micro-batches or its settings/,
  );
});

it('refuses the options where the start has no use for data', async () => {
  const file = join(folder, 'none.safetensors');
  const plain = await balora(train('plain', '--method', 'pissa', '--calibration', file));
  expect([plain.code, plain.err]).toEqual([
    2,
    expect.stringMatching(
      /--calibration is for starts that are computed from data, and --init-lora-weights pissa is not; leave it out/,
    ),
  ]);
  const command = await balora([
    'calibrate',
    ...common('--method', 'pissa', '--calibration', file),
  ]);
  expect([command.code, command.err]).toEqual([
    2,
    expect.stringMatching(
      /calibrate needs a start that is computed from data; choose --method eva, corda, lora_ga or lora_ga_peft/,
    ),
  ]);
  const without = await balora(['calibrate', ...common('--method', 'eva')]);
  expect([without.code, without.err]).toEqual([2, expect.stringMatching(/--calibration/)]);
  expect(existsSync(file)).toBe(false);
});
