/** Properties that every method with tensors of its own (in the place of a pair A, B) must have. */
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../../lib/adapters/adapter_model.ts';
import { type LoraConfigInput, loraConfig } from '../../../lib/adapters/config.ts';
import { saveMerged } from '../../../lib/adapters/merge.ts';
import { variantOf } from '../../../lib/adapters/methods/registry.ts';
import { memoryStats } from '../../../lib/runtime.ts';
import { Trainer } from '../../../lib/train/trainer.ts';
import { goldenArrays } from '../../support/golden.ts';
import { kOwnForms } from '../../support/own_forms.ts';
import { disturb, expectNear, hidden, readWeights } from '../../support/tiny_adapters.ts';
import { TinyModel, tinyBatches, tinySource } from '../../support/tiny_model.ts';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'balora-own-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const create = (model: TinyModel, config: LoraConfigInput) => AdapterModel.create(model, config);

describe.each(kOwnForms)('%s', (_, config) => {
  const { own } = variantOf(loraConfig(config));
  const settings = { ...loraConfig(config) };

  it('initially and while disabled leaves the base unchanged, and disposed of restores it', async () => {
    const model = new TinyModel();
    const base = hidden(model);
    const before = memoryStats().liveBytes;
    const tuned = await create(model, config);
    expectNear(hidden(model), base, 1e-6);
    disturb(tuned);
    const moved = hidden(model);
    expect(moved.some((value, i) => Math.abs(value - (base[i] as number)) > 0.01)).toBe(true);
    expect(tuned.withTeacher(() => hidden(model))).toEqual(base);
    expect(hidden(model)).toEqual(moved);
    tuned.dispose();
    expect(hidden(model)).toEqual(base);
    expect(memoryStats().liveBytes).toBe(before);
  });

  it('gives the same model after export and loading in its own form', async () => {
    const model = new TinyModel();
    const tuned = await create(model, config);
    disturb(tuned);
    await tuned.savePretrained(folder);
    const loaded = new TinyModel();
    const again = await AdapterModel.fromPretrained(loaded, folder);
    expect(again.warnings).toEqual([]);
    expect(hidden(loaded)).toEqual(hidden(model));
    const written = JSON.parse(readFileSync(join(folder, 'adapter_config.json'), 'utf8'));
    expect(written).toMatchObject({ peft_type: own?.peftType, r: settings.r });
    const hasDora = own !== undefined && Object.hasOwn(own.keys, 'use_dora');
    expect(Object.hasOwn(written, 'use_dora')).toBe(hasDora);
    const keys = [...goldenArrays(join(folder, 'adapter_model.safetensors')).keys()];
    const module = 'base_model.model.layers.0.up_proj.';
    expect(keys.filter((key) => key.startsWith(module)).sort()).toEqual(
      own
        ?.tensors(settings)
        .filter(({ isState = false }) => !isState)
        .map(({ key }) => module + key)
        .sort(),
    );
    expect(keys.filter((key) => !key.startsWith('base_model.model.')).sort()).toEqual(
      own?.shared.map(({ key }) => `base_model.${key}`).sort(),
    );
  });

  it('is restored from its state bit for bit', async () => {
    const [model, other] = [new TinyModel(), new TinyModel()];
    const tuned = await create(model, config);
    disturb(tuned);
    const again = await create(other, config);
    hidden(other);
    again.restore(tuned.state(), 'a state');
    expect(hidden(other)).toEqual(hidden(model));
    expect(again.identity()).toEqual(tuned.identity());
  });

  it('gives the same model after merging, on disk and in memory', async () => {
    const model = new TinyModel();
    const tuned = await create(model, config);
    disturb(tuned);
    const expected = hidden(model);
    const out = join(folder, 'merged');
    await saveMerged(tuned, out);
    expectNear(hidden(readWeights(new TinyModel(), out)), expected, 1e-5);
    expect(await tuned.mergeAndUnload()).toBe(model);
    expect(hidden(model)).toEqual(hidden(readWeights(new TinyModel(), out)));
  });

  it('gives the same model as a plain LoRA, or says why there is none', async () => {
    const model = new TinyModel();
    const tuned = await create(model, config);
    disturb(tuned);
    const out = join(folder, 'plain');
    if (own?.loraObstacle(settings) !== null) {
      await expect(tuned.savePretrained(out, { form: 'plain-lora' })).rejects.toThrow(
        `${own?.peftType} changes the whole weight at full rank`,
      );
      expect(existsSync(out)).toBe(false);
      return;
    }
    await tuned.savePretrained(out, { form: 'plain-lora' });
    const plain = new TinyModel();
    const again = await AdapterModel.fromPretrained(plain, out);
    expect([again.config.peftType, again.warnings]).toEqual(['LORA', []]);
    expectNear(hidden(plain), hidden(model), 1e-5);
  });

  it('has no residual form, and no pair', async () => {
    const tuned = await create(new TinyModel(), config);
    expect(() => tuned.checkForm('residual')).toThrow(/export "residual" is /);
    expect(() => tuned.modules[0]?.pair).toThrow(
      `layers.0.gate_proj: an adapter of the type ${own?.peftType} has no pair A, B`,
    );
  });

  it('trains on a bf16 base in f32, beside another adapter and with dropout, and resumes bit for bit', async () => {
    const keys = Object.values(own?.keys ?? {});
    const hasDropout = keys.some((key) => 'option' in key && key.option === 'loraDropout');
    const run = async (): Promise<{ tuned: AdapterModel; start: number }> => {
      const model = new TinyModel({ dtype: 'bf16', width: 16 });
      const tuned = await create(model, { ...config, ...(hasDropout && { loraDropout: 0.3 }) });
      await tuned.addAdapter('other', { r: 2 });
      let start = -1;
      await new Trainer({
        ...{ tuned, data: tinySource(tinyBatches()), learningRate: 0.02, maxSteps: 4 },
        ...{ output: folder, resume: true, saveSteps: 2, gradientAccumulationSteps: 2 },
        callbacks: [
          (event) => {
            if (event.type === 'start') start = event.startStep;
          },
        ],
      }).train();
      return { tuned, start };
    };
    const last = join(folder, 'run/checkpoints/step-4');
    const bytes = () => readFileSync(join(last, 'state.safetensors'));
    const { tuned, start } = await run();
    expect(start).toBe(0);
    for (const { name, tensor } of tuned.parameters()) expect(tensor.dtype, name).toBe('f32');
    const before = bytes();
    const loaded = new TinyModel({ dtype: 'bf16', width: 16 });
    const again = await AdapterModel.fromPretrained(loaded, last);
    expect(again.warnings).toEqual([]);
    const values = (of: AdapterModel) =>
      new Map(Object.entries(of.state()).map(([name, tensor]) => [name, tensor.dataSync()]));
    expect(values(again)).toEqual(values(tuned));
    rmSync(last, { recursive: true });
    expect((await run()).start).toBe(2);
    expect(bytes().equals(before)).toBe(true);
  });
});
