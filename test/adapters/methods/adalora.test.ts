import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../../lib/adapters/adapter_model.ts';
import type { AdapterConfigInput } from '../../../lib/adapters/create.ts';
import { defineTerm } from '../../../lib/losses/term.ts';
import { mean, square } from '../../../lib/ops/index.ts';
import type { Tensor } from '../../../lib/tensor.ts';
import { Trainer, type TrainerOptions } from '../../../lib/train/trainer.ts';
import { TinyModel, tinyBatches, tinySource } from '../../support/tiny_model.ts';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'balora-adalora-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const kSettings = { method: 'adalora', initR: 4, targetR: 2, tinit: 1, tfinal: 2 } as const;
const create = (more: AdapterConfigInput = {}) =>
  AdapterModel.create(new TinyModel(), { ...kSettings, ...more });
const trainer = (tuned: AdapterModel, more: Partial<TrainerOptions> = {}) =>
  new Trainer({
    ...{ tuned, data: tinySource(tinyBatches()), learningRate: 0.02, maxSteps: 8 },
    ...{ lrSchedulerType: 'constant', warmupSteps: 0 },
    ...more,
  });
const numbers = (value: Tensor): number[] => Array.from(value.dataSync() as Float32Array);
const left = (tuned: AdapterModel): number =>
  tuned.modules
    .flatMap(({ parameters }) => numbers(parameters.get('lora_E') as Tensor))
    .filter((value) => value !== 0).length;

it('starts as the base, with normal A and B of deviation 0.02 and E zero', async () => {
  const tuned = await create();
  const all = (key: string) =>
    tuned.modules.flatMap(({ parameters }) => numbers(parameters.get(key) as Tensor));
  for (const key of ['lora_A', 'lora_B']) {
    const values = all(key);
    const deviation = Math.sqrt(values.reduce((sum, v) => sum + v * v, 0) / values.length);
    expect(Math.abs(deviation / 0.02 - 1), key).toBeLessThan(0.15);
  }
  expect(all('lora_E').every((value) => value === 0)).toBe(true);
  // alpha over the rank at the start, for good.
  expect(tuned.modules.map(({ scale }) => scale)).toEqual(tuned.modules.map(() => 8 / 4.00001));
});

it('lowers the number of triplets to targetR a module, keeps the last choice, and writes it', async () => {
  const tuned = await create();
  const counts: number[] = [];
  for await (const event of trainer(tuned).run()) {
    if (event.type === 'step') counts.push(left(tuned));
  }
  // 6 modules: int(12 (1 - (t - 1) / 5)^3 + 12) at t = 2 to 5, 12 from t = 6 on.
  expect(counts).toEqual([24, 18, 14, 12, 12, 12, 12, 12]);
  await tuned.savePretrained(folder);
  const again = await AdapterModel.fromPretrained(new TinyModel(), folder);
  expect(left(again)).toBe(12);
  expect(again.config).toMatchObject({ totalStep: 8, initR: 4, targetR: 2, tinit: 1, tfinal: 2 });
  await expect(trainer(again).train()).rejects.toThrow(
    'adalora: an earlier run has chosen the ranks of this adapter, which a run chooses once',
  );
});

it('writes all triplets in the course of a run, where masked ones grow again', async () => {
  const tuned = await create({ deltaT: 2, tinit: 0, tfinal: 0 });
  const stop = new AbortController();
  const run = trainer(tuned, { signal: stop.signal });
  for await (const event of run.run()) {
    if (event.type === 'step' && event.record.step === 2) expect(left(tuned)).toBeLessThan(24);
    if (event.type === 'step' && event.record.step === 3) stop.abort();
  }
  expect(left(tuned)).toBe(24);
  await tuned.savePretrained(folder);
  const again = await AdapterModel.fromPretrained(new TinyModel(), folder);
  expect(again.config.keptTriplets).toBeNull();
  expect(left(again)).toBe(24);
});

it('has its term in the records, once a step, and none at the weight 0', async () => {
  const terms = async (more: AdapterConfigInput, options: Partial<TrainerOptions>) => {
    const found: unknown[] = [];
    for await (const event of trainer(await create(more), { maxSteps: 4, ...options }).run()) {
      if (event.type === 'step') found.push(event.record.terms);
    }
    return found;
  };
  const once = (await terms({}, {})) as { orthogonality: { value: number; weight: number } }[];
  const twice = await terms({}, { gradientAccumulationSteps: 2 });
  expect(once[0]?.orthogonality.weight).toBe(0.5);
  expect(twice[0]).toEqual(once[0]);
  expect(once[3]?.orthogonality.value).toBeLessThan(once[0]?.orthogonality.value as number);
  expect((await terms({ orthRegWeight: 0 }, {}))[0]).toEqual({});
  const own = defineTerm({
    key: 'orthogonality',
    weight: 1,
    value: ({ logits }) => mean(square(logits())),
  });
  await expect(trainer(await create(), { terms: [own] }).train()).rejects.toThrow(
    "terms: the adapter's method has a term orthogonality of its own; give yours another key",
  );
});

describe('is refused', () => {
  it('with a targetR that is not below initR', async () => {
    await expect(create({ targetR: 4 })).rejects.toThrow(
      'targetR 4 must be below initR 4, the rank that AdaLoRA starts with; set one of them',
    );
  });

  it('with a rank r, which would have no effect', async () => {
    await expect(create({ r: 6 })).rejects.toThrow(
      'r 6 means nothing in AdaLoRA, whose ranks are initR and targetR; leave r out',
    );
  });

  it('in a run that is too short for a choice', async () => {
    await expect(trainer(await create(), { maxSteps: 3 }).train()).rejects.toThrow(
      'tinit 1 and tfinal 2: a run of 3 steps has none between them in which ranks are chosen; set them lower, or train longer',
    );
  });

  it('where a run is resumed with a length in which earlier choices would have been others', async () => {
    const output = join(folder, 'run');
    await trainer(await create(), { output, saveSteps: 2 }).train();
    const longer = trainer(await create(), { output, resume: true, maxSteps: 12 });
    await expect(longer.train()).rejects.toThrow(
      /what the adapter's method does depends on the number of steps \(step 2 had 18/,
    );
  });
});
