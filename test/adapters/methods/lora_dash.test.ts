import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { AdapterModel } from '../../../lib/adapters/adapter_model.ts';
import type { AdapterConfigInput } from '../../../lib/adapters/create.ts';
import type { Tensor } from '../../../lib/tensor.ts';
import { Trainer, type TrainerOptions } from '../../../lib/train/trainer.ts';
import { expectNear, hidden } from '../../support/tiny_adapters.ts';
import { TinyModel, tinyBatches, tinySource } from '../../support/tiny_model.ts';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'balora-dash-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const create = (more: AdapterConfigInput = {}, model = new TinyModel()) =>
  AdapterModel.create(model, { method: 'lora_dash', r: 3, dashWarmup: 4, dashIndex: 2, ...more });
const trainer = (tuned: AdapterModel, more: Partial<TrainerOptions> = {}) =>
  new Trainer({
    ...{ tuned, data: tinySource(tinyBatches()), learningRate: 0.02, maxSteps: 5 },
    ...{ lrSchedulerType: 'constant', warmupSteps: 0, gradientAccumulationSteps: 2 },
    ...more,
  });
const numbers = (value: Tensor): number[] => Array.from(value.dataSync() as Float32Array);
const of = (tuned: AdapterModel, key: string): number[] =>
  numbers(tuned.modules[0]?.parameters.get(key) as Tensor);

it('is LoRA for dashWarmup forward passes, with the same values bit for bit, and then trains c', async () => {
  const [dash, lora] = [await create(), await AdapterModel.create(new TinyModel(), { r: 3 })];
  await trainer(lora, { maxSteps: 2 }).train();
  const plain = new Map(lora.parameters().map(({ name, tensor }) => [name, numbers(tensor)]));
  const calls: number[][] = [];
  for await (const event of trainer(dash).run()) {
    if (event.type !== 'step') continue;
    calls.push(of(dash, 'lora_dash_calls'));
    if (event.record.step !== 2) continue;
    for (const { name, tensor } of dash.parameters()) {
      if (plain.has(name)) expect(numbers(tensor), name).toEqual(plain.get(name));
    }
    expect(of(dash, 'lora_index')).toEqual([0, 0]);
  }
  expect(calls).toEqual([
    [2, 0],
    [4, 0],
    [4, 1],
    [4, 1],
    [4, 1],
  ]);
  // The first step of c is one of Adam: the learning rate in size.
  expect(of(dash, 'lora_index').every((value) => value !== 0)).toBe(true);
});

it('continues after loading without another warm-up, and leaves as a plain LoRA of rank r + dashIndex', async () => {
  const model = new TinyModel();
  const tuned = await create({}, model);
  await trainer(tuned).train();
  const [own, plain] = [join(folder, 'own'), join(folder, 'plain')];
  await tuned.savePretrained(own);
  await tuned.savePretrained(plain, { form: 'plain-lora' });
  const loaded = new TinyModel();
  const again = await AdapterModel.fromPretrained(loaded, own);
  expect(hidden(loaded)).toEqual(hidden(model));
  const directions = of(again, 'weight_u_top');
  await trainer(again, { maxSteps: 1 }).train();
  expect(of(again, 'weight_u_top')).toEqual(directions);
  expect(of(again, 'lora_dash_calls')).toEqual([4, 1]);
  const other = new TinyModel();
  const asLora = await AdapterModel.fromPretrained(other, plain);
  expect(asLora.modules.every(({ r }) => r === 5)).toBe(true);
  expectNear(hidden(other), hidden(model), 1e-5);
});

it('says by its update key that recorded passes lack the directions that were taken since', async () => {
  const tuned = await create({ dashWarmup: 1 });
  const keys = () => tuned.modules.map(({ updateKey }) => updateKey);
  const [before, phase] = [keys(), tuned.beforeRecorded()];
  expect(keys()).toEqual(before);
  expect(new Set(before).size).toBe(tuned.modules.length);
  await trainer(tuned, { maxSteps: 2 }).train();
  expect(keys().some((key, i) => key === before[i])).toBe(false);
  expect(tuned.beforeRecorded()).not.toBe(phase);
});

it('is refused in a run that ends before its warm-up, or with an alpha of 0', async () => {
  await expect(trainer(await create(), { maxSteps: 2 }).train()).rejects.toThrow(
    'dashWarmup 4: the run has 4 forward passes, so that it would train a plain LoRA; set dashWarmup lower, or train longer',
  );
  await expect(create({ loraAlpha: 0 })).rejects.toThrow(
    'loraAlpha 0 leaves the pair without effect; give a number above 0',
  );
});
