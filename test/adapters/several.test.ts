/** Several adapters on one base, modules that are trained themselves (modulesToSave), and dropout. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { AdapterModel, type LoraModule } from '../../lib/adapters/adapter_model.ts';
import { FullModel } from '../../lib/adapters/full_model.ts';
import { saveMerged } from '../../lib/adapters/merge.ts';
import { AutoModelForCausalLM } from '../../lib/models/index.ts';
import { memoryStats } from '../../lib/runtime.ts';
import { collectGarbage } from '../support/collect_garbage.ts';
import { fixturePath } from '../support/fixtures.ts';
import { goldenArrays } from '../support/golden.ts';
import { disturb, hidden } from '../support/tiny_adapters.ts';
import { TinyModel } from '../support/tiny_model.ts';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'balora-several-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

describe('several adapters on one base', () => {
  it('are added, switched, disabled and deleted by name', async () => {
    const model = new TinyModel();
    const base = hidden(model);
    const tuned = await AdapterModel.create(model, { r: 3 }, { name: 'one' });
    disturb(tuned);
    const one = hidden(model);
    await tuned.addAdapter('two', { r: 2, useDora: true, modulesToSave: ['norm'] });
    expect([tuned.names, tuned.active]).toEqual([['one', 'two'], 'one']);
    expect(hidden(model)).toEqual(one);
    tuned.setAdapter('two');
    expect(hidden(model)).toEqual(base);
    expect(tuned.config.useDora).toBe(true);
    disturb(tuned, 500);
    const two = hidden(model);
    expect(two).not.toEqual(base);
    await tuned.savePretrained(folder);
    tuned.setAdapter('one');
    expect(hidden(model)).toEqual(one);
    tuned.setAdapter('two');
    expect(hidden(model)).toEqual(two);
    expect(tuned.withTeacher(() => hidden(model))).toEqual(base);
    tuned.enabled = false;
    expect(hidden(model)).toEqual(base);
    tuned.setAdapter('one');
    expect(hidden(model)).toEqual(base);
    tuned.enabled = true;
    expect(hidden(model)).toEqual(one);
    await tuned.loadAdapter(folder, 'again');
    tuned.deleteAdapter('two');
    tuned.setAdapter('again');
    expect(hidden(model)).toEqual(two);
    expect(tuned.names).toEqual(['one', 'again']);
    tuned.dispose();
    expect(hidden(model)).toEqual(base);
  });

  it('run in the place of the active one for one call, switched on and without dropout', async () => {
    const model = new TinyModel();
    const base = hidden(model);
    const tuned = await AdapterModel.create(model, { r: 3, loraDropout: 0.5 }, { name: 'one' });
    disturb(tuned);
    const one = hidden(model);
    await tuned.addAdapter('two', { r: 2, modulesToSave: ['norm'] });
    tuned.setAdapter('two');
    disturb(tuned, 500);
    const two = hidden(model);
    expect(tuned.withAdapter('one', () => hidden(model))).toEqual(one);
    expect([hidden(model), tuned.active]).toEqual([two, 'two']);
    tuned.enabled = false;
    expect(tuned.withAdapter('two', () => hidden(model))).toEqual(two);
    expect(tuned.withAdapter('one', () => hidden(model))).toEqual(one);
    expect(hidden(model)).toEqual(base);
    tuned.enabled = true;
    tuned.setAdapter('one');
    tuned.trainingPass({ step: 1, microBatch: 0 });
    const dropped = hidden(model);
    expect(dropped).not.toEqual(one);
    expect(tuned.withAdapter('one', () => hidden(model))).toEqual(one);
    expect(tuned.withAdapter('two', () => hidden(model))).toEqual(two);
    expect(hidden(model)).toEqual(dropped);
    tuned.trainingPass(null);
    const fail = (): never => {
      throw new Error('inside');
    };
    expect(() => tuned.withAdapter('two', fail)).toThrow('inside');
    expect(hidden(model)).toEqual(one);
    const last = tuned.modules.at(-1) as LoraModule;
    let adapter: unknown = last;
    Object.defineProperty(last.linear, 'adapter', {
      configurable: true,
      get: () => adapter,
      set: (value) => {
        if (value !== null && value !== last) fail();
        adapter = value;
      },
    });
    expect(() => tuned.withAdapter('two', () => 0)).toThrow('inside');
    expect(hidden(model)).toEqual(one);
    expect(() => tuned.withAdapter('three', () => 0)).toThrow(
      'there is no adapter "three"; known: one, two',
    );
    tuned.dispose();
  });

  it('are refused where a name is taken or unknown', async () => {
    const tuned = await AdapterModel.create(new TinyModel(), { r: 3 });
    await expect(tuned.addAdapter('default')).rejects.toThrow(
      'there is an adapter "default" already',
    );
    await expect(tuned.addAdapter('other', { targetModules: ['none'] })).rejects.toThrow(
      /matches no/,
    );
    expect([tuned.names, tuned.enabled]).toEqual([['default'], true]);
    expect(() => tuned.setAdapter('other')).toThrow('there is no adapter "other"; known: default');
    expect(() => tuned.deleteAdapter('default')).toThrow(
      /is active; make another one active with setAdapter\(\)/,
    );
  });
});

describe('adapters that are added at once', () => {
  it('leave the active one on', async () => {
    const model = new TinyModel();
    const base = hidden(model);
    const tuned = await AdapterModel.create(model, { r: 3, modulesToSave: ['norm'] });
    disturb(tuned);
    const before = hidden(model);
    await tuned.savePretrained(folder);
    const both = [tuned.addAdapter('two', { r: 2 }), tuned.loadAdapter(folder, 'three')];
    expect(hidden(model)).toEqual(base);
    await Promise.all(both);
    expect(tuned.names).toEqual(['default', 'two', 'three']);
    expect(tuned.enabled).toBe(true);
    expect(hidden(model)).toEqual(before);
    const failing = [
      tuned.addAdapter('four', { targetModules: ['none'] }),
      tuned.addAdapter('five'),
      tuned.loadAdapter(join(folder, 'nowhere'), 'six'),
    ];
    await Promise.allSettled(failing);
    expect(tuned.names).toEqual(['default', 'two', 'three', 'five']);
    expect(hidden(model)).toEqual(before);
  });

  it('have different names', async () => {
    const tuned = await AdapterModel.create(new TinyModel(), { r: 3 });
    const first = tuned.addAdapter('two', { r: 2 });
    await expect(tuned.addAdapter('two', { r: 4 })).rejects.toThrow(
      'an adapter "two" is being added already; give this one another name',
    );
    await first;
    expect([tuned.names, tuned.enabled]).toEqual([['default', 'two'], true]);
    tuned.setAdapter('two');
    expect(tuned.config.r).toBe(2);
    await expect(tuned.addAdapter('three', { targetModules: ['none'] })).rejects.toThrow();
    await tuned.addAdapter('three', { r: 5 }); // the name of one that failed is free
    expect(tuned.names).toEqual(['default', 'two', 'three']);
  });

  it('let another be made the active one, switched off or deleted meanwhile', async () => {
    const model = new TinyModel();
    const base = hidden(model);
    const tuned = await AdapterModel.create(model, { r: 3 });
    disturb(tuned);
    const one = hidden(model);
    await tuned.addAdapter('two', { r: 2, modulesToSave: ['norm'] });
    tuned.setAdapter('two');
    disturb(tuned, 500);
    const two = hidden(model);

    const third = tuned.addAdapter('three');
    expect(() => tuned.setAdapter('three')).toThrow('there is no adapter "three"');
    expect(() => tuned.deleteAdapter('three')).toThrow('there is no adapter "three"');
    tuned.setAdapter('default');
    expect(hidden(model)).toEqual(base);
    expect(tuned.withTeacher(() => hidden(model))).toEqual(base);
    await third;
    expect(hidden(model)).toEqual(one);

    const fourth = tuned.addAdapter('four');
    tuned.setAdapter('two');
    tuned.deleteAdapter('default');
    tuned.enabled = false;
    await fourth;
    expect([hidden(model), tuned.enabled]).toEqual([base, false]);
    tuned.enabled = true;
    expect(hidden(model)).toEqual(two);

    tuned.enabled = false;
    const fifth = tuned.addAdapter('five');
    tuned.enabled = true;
    expect(hidden(model)).toEqual(base);
    await fifth;
    expect(hidden(model)).toEqual(two);
    expect(tuned.names).toEqual(['two', 'three', 'four', 'five']);
  });

  it('are not put on a model that was disposed of', async () => {
    const model = new TinyModel();
    const base = hidden(model);
    const tuned = await AdapterModel.create(model, { r: 3, modulesToSave: ['norm'] });
    disturb(tuned);
    await collectGarbage();
    const before = memoryStats().liveTensors;
    const second = tuned.addAdapter('two', { r: 2 });
    tuned.dispose();
    const refused = 'the adapter "two" cannot be added: the AdapterModel was disposed of';
    await expect(second).rejects.toThrow(refused);
    expect(memoryStats().liveTensors).toBeLessThan(before);
    await expect(tuned.addAdapter('two')).rejects.toThrow(refused);
    tuned.enabled = true;
    expect(hidden(model)).toEqual(base);
  });

  it('are refused where a model is given its first twice', async () => {
    const model = new TinyModel();
    const first = AdapterModel.create(model, { r: 3 });
    const refused =
      'the model is being given an adapter already: await that, and use addAdapter() for another one';
    await expect(AdapterModel.create(model, { r: 2 })).rejects.toThrow(refused);
    await expect(AdapterModel.fromPretrained(model, folder)).rejects.toThrow(refused);
    expect(() => new FullModel(model as never)).toThrow(refused);
    const tuned = await first;
    disturb(tuned);
    await expect(AdapterModel.create(model, { r: 2 })).rejects.toThrow(/has an adapter already/);
    tuned.dispose();
    const failing = AdapterModel.create(model, { targetModules: ['none'] });
    await expect(failing).rejects.toThrow(/matches no/);
    await AdapterModel.create(model, { r: 2 });
  });
});

describe('modulesToSave', () => {
  it.each(['f32', 'bf16'] as const)('train whole modules, in %s', async (dtype) => {
    const model = new TinyModel({ dtype });
    const base = hidden(model);
    const tuned = await AdapterModel.create(model, {
      r: 3,
      modulesToSave: ['norm', 'layers.1.down_proj'],
    });
    expect(hidden(model)).toEqual(base);
    expect(tuned.modules.map(({ name }) => name)).not.toContain('layers.1.down_proj');
    expect(tuned.modules).toHaveLength(5);
    const saved = ['layers.0.norm.weight', 'layers.1.norm.weight', 'norm.weight'];
    expect(tuned.saved?.parameters.map(({ name }) => name).sort()).toEqual(
      [...saved, 'layers.1.down_proj.weight'].sort(),
    );
    for (const { name, tensor, decays } of tuned.saved?.parameters ?? []) {
      expect(tensor.dtype).toBe('f32');
      expect(decays).toBe(!saved.includes(name));
    }
    disturb(tuned, 100, 0.1); // small in relation to the base: the product with a large pair is rounded otherwise after loading
    const moved = hidden(model);
    expect(tuned.withTeacher(() => hidden(model))).toEqual(base);
    await tuned.savePretrained(folder);
    const keys = [...goldenArrays(join(folder, 'adapter_model.safetensors')).keys()];
    expect(keys).toContain('base_model.model.layers.1.down_proj.weight');
    const config = JSON.parse(readFileSync(join(folder, 'adapter_config.json'), 'utf8'));
    expect(config.modules_to_save).toEqual(['norm', 'layers.1.down_proj']);
    const other = new TinyModel({ dtype });
    const loaded = await AdapterModel.fromPretrained(other, folder);
    expect(hidden(other)).toEqual(moved);
    expect(loaded.withTeacher(() => hidden(other))).toEqual(base);
  });

  it('may be the head: losses use the trained one, the teacher the base, and merging writes the trained one', async () => {
    const path = fixturePath('architectures/llama-untied-gqa/model');
    const model = await AutoModelForCausalLM.fromPretrained(path);
    const base = model.head.weight;
    const tuned = await AdapterModel.create(model, { r: 2, modulesToSave: ['lm_head'] });
    expect(tuned.trainsHead).toBe(true);
    expect(model.head.weight).not.toBe(base);
    expect(tuned.withTeacher((teacher) => teacher.head.weight)).toBe(base);
    disturb(tuned);
    await saveMerged(tuned, folder);
    const written = goldenArrays(join(folder, 'model.safetensors')).get('lm_head.weight');
    expect(written?.data).toEqual(model.head.weight.dataSync());
  });

  it('are refused where they do not fit', async () => {
    await expect(
      AdapterModel.create(new TinyModel(), { r: 3, modulesToSave: ['head'] }),
    ).rejects.toThrow('modulesToSave ["head"] matches no module');
    const tuned = await AdapterModel.create(new TinyModel(), { r: 3, modulesToSave: ['norm'] });
    await tuned.savePretrained(folder);
    await expect(AdapterModel.fromPretrained(new TinyModel({ width: 6 }), folder)).rejects.toThrow(
      /the saved module's "layers.0.norm.weight" has the shape \(8\), the model's \(6\): the adapter is of another model or head; load/,
    );
    const tied = fixturePath('architectures/llama-tied/model');
    const model = await AutoModelForCausalLM.fromPretrained(tied);
    const head = await AdapterModel.create(model, { r: 2, modulesToSave: ['lm_head'] });
    await expect(saveMerged(head, join(folder, 'merged'))).rejects.toThrow(
      /lm_head.weight is trained apart from the weight that the model ties it to/,
    );
  });
});

describe('dropout', () => {
  it('is a function of seed, step and micro-batch, and only in training', async () => {
    const model = new TinyModel();
    const tuned = await AdapterModel.create(model, { r: 3, loraDropout: 0.5 }, { seed: 7 });
    disturb(tuned);
    const plain = hidden(model);
    const at = (step: number, microBatch: number): number[] => {
      tuned.trainingPass({ step, microBatch });
      const found = hidden(model);
      tuned.trainingPass(null);
      return found;
    };
    const first = at(0, 0);
    expect(at(0, 0)).toEqual(first);
    for (const other of [at(1, 0), at(0, 1), plain]) expect(other).not.toEqual(first);
    expect(hidden(model)).toEqual(plain);
    const again = new TinyModel();
    const seeded = await AdapterModel.create(again, { r: 3, loraDropout: 0.5 }, { seed: 8 });
    disturb(seeded);
    seeded.trainingPass({ step: 0, microBatch: 0 });
    expect(hidden(again)).not.toEqual(first);
  });

  it('is applied to the input of A: while B is 0 it changes nothing', async () => {
    const model = new TinyModel();
    const base = hidden(model);
    const tuned = await AdapterModel.create(model, { r: 3, loraDropout: 0.5, useDora: true });
    tuned.trainingPass({ step: 0, microBatch: 0 });
    expect(hidden(model)).toEqual(base);
    // The trained pair and the frozen one that is subtracted from W see the same dropped inputs, so that PiSSA starts as the base.
    const other = new TinyModel();
    const pissa = await AdapterModel.create(other, {
      r: 3,
      loraDropout: 0.5,
      initLoraWeights: 'pissa',
    });
    pissa.trainingPass({ step: 0, microBatch: 0 });
    hidden(other).forEach((value, i) => {
      expect(Math.abs(value - (base[i] as number))).toBeLessThan(1e-6);
    });
  });
});
