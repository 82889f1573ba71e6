import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../../lib/adapters/adapter_model.ts';
import type { AdapterMethodName } from '../../../lib/adapters/create.ts';
import { FullModel } from '../../../lib/adapters/full_model.ts';
import { METHOD_NAMES } from '../../../lib/adapters/methods/registry.ts';
import { kTrainOptions } from '../../../lib/cli/train_options.ts';
import { checkValue } from '../../../lib/options/option.ts';
import { resolveMethod } from '../../../lib/train/methods.ts';
import type { RegularizerOptions } from '../../../lib/train/regularizers.ts';
import { Trainer, type TrainerOptions } from '../../../lib/train/trainer.ts';
import { TinyModel, tinySource } from '../../support/tiny_model.ts';

const kFolder = mkdtempSync(join(tmpdir(), 'balora-preset-'));
afterAll(() => rmSync(kFolder, { recursive: true }));
const create = (config: Parameters<typeof AdapterModel.create>[1]) =>
  AdapterModel.create(new TinyModel(), config);
const optionsOf = (tuned: AdapterModel | FullModel, regularizers?: RegularizerOptions) =>
  new Trainer({ tuned, data: tinySource([]), ...(regularizers && { regularizers }) }).options;

describe('the argument `method`', () => {
  it('sets the adapter options of its preset, which explicit options override', async () => {
    const tuned = await create({ method: 'balora', r: 2, loraAlpha: 4 });
    expect(tuned.config).toMatchObject({ r: 2, loraAlpha: 4, initLoraWeights: 'pissa' });
    expect(tuned.method).toBe('balora');
    const niter = await create({ method: 'balora', r: 2, initLoraWeights: 'pissa_niter_4' });
    expect(niter.config.initLoraWeights).toBe('pissa_niter_4');
    expect((await create({ method: 'dora', r: 2 })).config.useDora).toBe(true);
    expect((await create({ r: 2 })).method).toBeNull();
  });

  it('is refused with the reason for a method that is not offered on purpose', async () => {
    const config = { method: 'kasa', r: 2 } as never;
    await expect(create(config)).rejects.toThrow(
      /^method kasa is not offered: it cuts .* take milora/,
    );
    expect(() => checkValue('--method', kTrainOptions.method, 'kasa')).toThrow(
      /^--method kasa is not offered: it cuts/,
    );
    expect(() => checkValue('--method', kTrainOptions.method, 'kas')).toThrow(
      /must be one of lora/,
    );
  });

  it("is also overridden by options in PEFT's spelling", async () => {
    const tuned = await create({ method: 'balora', r: 2, init_lora_weights: true } as never);
    expect(tuned.config.initLoraWeights).toBe(true);
  });

  it('sets the weights of the regularizers in the trainer', async () => {
    const tuned = await create({ method: 'balora', r: 2 });
    expect(optionsOf(tuned).regularizers).toEqual(resolveMethod('balora').regularizers);
    expect(optionsOf(tuned).regularizers.consistencyWeight).toBe(0.025);
    expect(optionsOf(await create({ r: 2 })).regularizers.consistencyWeight).toBe(0);
  });

  it('is overridden by options of the trainer', async () => {
    const tuned = await create({ method: 'balora', r: 2 });
    const { regularizers } = optionsOf(tuned, { svdWeight: 0, temperature: 3 });
    expect(regularizers).toMatchObject({ consistencyWeight: 0.025, svdWeight: 0, temperature: 3 });
    expect(optionsOf(tuned, { consistencyWeight: undefined }).regularizers.consistencyWeight).toBe(
      0.025,
    );
  });

  it('sets options of the optimisation in the trainer, unless the caller chooses another optimiser', async () => {
    const tuned = await create({ method: 'lora_fa', r: 2 });
    const optimizationOf = (given: Partial<TrainerOptions>) =>
      new Trainer({ tuned, data: tinySource([]), ...given }).options.optimization;
    expect(optimizationOf({})).toMatchObject({ optim: 'lora_fa', adamEpsilon: 1e-6 });
    expect(optimizationOf({ adamEpsilon: 1e-7 })).toMatchObject({
      ...{ optim: 'lora_fa', adamEpsilon: 1e-7 },
    });
    expect(optimizationOf({ optim: 'adamw' })).toMatchObject({ optim: 'adamw', adamEpsilon: 1e-8 });
    expect(resolveMethod('lora_fa').optimization).toEqual({ optim: 'lora_fa', adamEpsilon: 1e-6 });
    expect(resolveMethod('lora').optimization).toEqual({});
  });

  it('leaves the identity of a run unchanged', async () => {
    const { adapter, regularizers } = resolveMethod('balora', { adapter: { r: 2 } });
    const { method: _, ...plain } = adapter;
    const before = await create(plain);
    const now = await create({ method: 'balora', r: 2 });
    expect(JSON.stringify(now.identity())).toBe(JSON.stringify(before.identity()));
    // The origin of the values is another one.
    const { method, config } = optionsOf(now);
    const given = { ...optionsOf(before, regularizers), method, config };
    expect(JSON.stringify(optionsOf(now))).toBe(JSON.stringify(given));
    expect(config.source).toMatchObject({ 'consistency-weight': 'method' });
  });

  it('is that of the active adapter', async () => {
    const tuned = await create({ method: 'balora', r: 2 });
    await tuned.addAdapter('plain', { r: 2 });
    await tuned.addAdapter('dora', { method: 'dora', r: 2 });
    expect(tuned.method).toBe('balora');
    tuned.setAdapter('plain');
    expect(tuned.method).toBeNull();
    expect(optionsOf(tuned).regularizers.consistencyWeight).toBe(0);
    tuned.setAdapter('dora');
    expect(tuned.method).toBe('dora');
  });

  it('must be given again for an adapter from a folder, which does not store it', async () => {
    const path = join(kFolder, 'named');
    await (await create({ method: 'balora', r: 2 })).savePretrained(path);
    expect((await AdapterModel.fromPretrained(new TinyModel(), path)).method).toBeNull();
    const tuned = await AdapterModel.fromPretrained(new TinyModel(), path, { method: 'balora' });
    expect(optionsOf(tuned).regularizers.consistencyWeight).toBe(0.025);
  });

  it('is "full" for FullModel, which has no regularizers', () => {
    const tuned = new FullModel(new TinyModel());
    expect(tuned.method).toBe('full');
    expect(optionsOf(tuned).regularizers).toEqual(resolveMethod('full').regularizers);
  });

  it('is refused where it is unknown, or a method without an adapter', async () => {
    const unknown = 'dora2' as AdapterMethodName;
    await expect(create({ method: unknown })).rejects.toThrow(
      `method must be one of ${METHOD_NAMES.join(', ')}, got "dora2"`,
    );
    const full = 'full' as AdapterMethodName;
    await expect(create({ method: full })).rejects.toThrow(
      'method full has no adapter; train every weight with new FullModel(model)',
    );
    await expect(create({ method: full, r: 4 })).rejects.toThrow('method full');
    const path = join(kFolder, 'plain');
    await (await create({ r: 2 })).savePretrained(path);
    await expect(
      AdapterModel.fromPretrained(new TinyModel(), path, { method: unknown }),
    ).rejects.toThrow('method must be one of');
  });
});
