/** Merging into the model in memory; every method and variant of the list does it in methods/registry.test.ts. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { type AdapterConfigInput, AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { saveMerged } from '../../lib/adapters/merge.ts';
import { ArgumentError, UnsupportedError } from '../../lib/errors.ts';
import {
  AutoModelForCausalLM,
  AutoModelForSequenceClassification,
  type CausalLM,
  type SequenceClassifier,
  saveModel,
} from '../../lib/models/index.ts';
import { Linear } from '../../lib/nn/index.ts';
import { copy_, randn } from '../../lib/ops/index.ts';
import { memoryStats, setMemoryLimit } from '../../lib/runtime.ts';
import { noGrad, scope } from '../../lib/tensor.ts';
import { collectGarbage } from '../support/collect_garbage.ts';
import { fixturePath } from '../support/fixtures.ts';
import { disturb, expectNear, hidden } from '../support/tiny_adapters.ts';
import { TinyModel } from '../support/tiny_model.ts';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'balora-merge-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const modelPath = (name: string): string => fixturePath(`architectures/${name}/model`);

const kBatch = {
  inputIds: Int32Array.of(3, 1, 4, 1, 5, 9, 2, 6),
  positions: Int32Array.of(0, 1, 2, 3, 4, 0, 1, 2),
  cuSeqlens: Int32Array.of(0, 5, 8),
};

const numbers = (values: ArrayLike<number | bigint>): number[] => Array.from(values, Number);

const logitsOf = (model: CausalLM | SequenceClassifier): number[] =>
  scope(() =>
    noGrad(() => {
      const states = model.forward(kBatch);
      const logits =
        model.taskType === 'SEQ_CLS'
          ? (model as SequenceClassifier).logits(states, kBatch)
          : (model as CausalLM).logits(states);
      return numbers(logits.dataSync());
    }),
  );

/** Moves every trained tensor by about `deviation`, small beside the weights. */
function train(tuned: Pick<AdapterModel, 'parameters' | 'afterStep'>): void {
  let seed = 7;
  for (const { tensor: parameter } of tuned.parameters()) {
    scope(() =>
      noGrad(() => copy_(parameter, randn(parameter.shape, { seed: seed++, deviation: 0.05 }))),
    );
  }
  tuned.afterStep();
}

const worst = (found: readonly number[], exact: readonly number[]): number =>
  Math.max(...found.map((value, i) => Math.abs(value - (exact[i] as number))));

/**
 * Expects the logits of a merged bf16 model to be about as close to those of the same adapter on the f32 model as the adapter's are:
 * the merged weights are rounded once more.
 */
async function expectAsClose(
  merged: number[],
  adapted: number[],
  exactModel: CausalLM | SequenceClassifier,
  config: AdapterConfigInput,
): Promise<void> {
  train(await AdapterModel.create(exactModel, config));
  const exact = logitsOf(exactModel);
  expect(worst(merged, exact)).toBeLessThanOrEqual(2 * worst(adapted, exact));
  exactModel.dispose();
}

describe('mergeAndUnload', () => {
  it.each([
    ['llama-untied-gqa', 'f32'],
    ['llama-untied-gqa', 'bf16'],
    ['llama-tied', 'f32'],
    ['gpt2', 'f32'],
    ['phi3', 'f32'],
  ] as const)(
    '%s in %s: the model that saveMerged writes, close to the adapter',
    async (name, dtype) => {
      const model = await AutoModelForCausalLM.fromPretrained(modelPath(name), { dtype });
      const base = logitsOf(model);
      // PiSSA of rounded weights would be another adapter than that of the f32 model.
      const config: AdapterConfigInput = {
        r: 4,
        initLoraWeights: dtype === 'f32' ? 'pissa' : true,
      };
      const tuned = await AdapterModel.create(model, config);
      train(tuned);
      const adapted = logitsOf(model);
      await saveMerged(tuned, folder);
      expect(await tuned.mergeAndUnload()).toBe(model);
      const merged = logitsOf(model);
      expect(merged).not.toEqual(base);
      if (dtype === 'f32') expectNear(merged, adapted, 1e-5);
      else {
        const exactModel = await AutoModelForCausalLM.fromPretrained(modelPath(name));
        await expectAsClose(merged, adapted, exactModel, config);
      }
      const saved = await AutoModelForCausalLM.fromPretrained(folder, { dtype });
      expect(merged).toEqual(logitsOf(saved));
      // Written again it is the same, too.
      await saveModel(model, join(folder, 'again'));
      const again = await AutoModelForCausalLM.fromPretrained(join(folder, 'again'), { dtype });
      expect(merged).toEqual(logitsOf(again));
      for (const each of [model, saved, again]) each.dispose();
    },
  );

  it.each([
    ['bert', 'f32'],
    ['bert', 'bf16'],
    ['deberta-v2', 'f32'],
  ] as const)("keeps a classifier's trained head, and biases: %s in %s", async (name, dtype) => {
    const path = modelPath(name);
    const model = await AutoModelForSequenceClassification.fromPretrained(path, { dtype });
    const base = logitsOf(model);
    const config = { r: 3, loraBias: true };
    const tuned = await AdapterModel.create(model, config);
    train(tuned);
    const adapted = logitsOf(model);
    await saveMerged(tuned, folder);
    await tuned.mergeAndUnload();
    const merged = logitsOf(model);
    expect(merged).not.toEqual(base);
    if (dtype === 'f32') expectNear(merged, adapted, 1e-5);
    else {
      const exactModel = await AutoModelForSequenceClassification.fromPretrained(path);
      await expectAsClose(merged, adapted, exactModel, config);
    }
    const saved = await AutoModelForSequenceClassification.fromPretrained(folder, { dtype });
    expect(merged).toEqual(logitsOf(saved));
    for (const parameter of model.parameters()) expect(parameter.requiresGrad).toBe(false);
    model.dispose();
    saved.dispose();
  });

  it('merges the active adapter, on or off, and removes the others', async () => {
    const model = new TinyModel();
    const tuned = await AdapterModel.create(model, { r: 3 }, { name: 'one' });
    disturb(tuned);
    await tuned.addAdapter('two', { r: 2, modulesToSave: ['layers.0.down_proj', 'norm'] });
    tuned.setAdapter('two');
    disturb(tuned, 500);
    const two = hidden(model);
    tuned.enabled = false;
    await tuned.mergeAndUnload();
    expectNear(hidden(model), two, 1e-5);
    for (const [, module] of model.namedModules()) {
      if (module instanceof Linear) expect(module.adapter).toBe(null);
    }
  });

  it('frees all that the adapter had, and what it replaced', async () => {
    const live = async () => {
      await collectGarbage();
      const { liveBytes, liveTensors } = memoryStats();
      return { liveBytes, liveTensors };
    };
    const nothing = await live();
    const model = await AutoModelForCausalLM.fromPretrained(modelPath('llama-untied-gqa'), {
      dtype: 'bf16',
    });
    logitsOf(model); // makes the tables of the rotary embedding
    const before = await live();
    const tuned = await AdapterModel.create(
      model,
      { r: 4, initLoraWeights: 'pissa', useDora: true, modulesToSave: ['lm_head', 'norm'] },
      { name: 'one' },
    );
    await tuned.addAdapter('two', { r: 2, modulesToSave: ['lm_head'] });
    train(tuned);
    logitsOf(model);
    expect((await live()).liveBytes).toBeGreaterThan(before.liveBytes);
    await tuned.mergeAndUnload();
    expect(await live()).toEqual(before);
    model.dispose();
    expect(await live()).toEqual(nothing);
  });

  it('leaves a model for new adapters, and an object that says what became of it', async () => {
    const model = new TinyModel();
    const tuned = await AdapterModel.create(model, { r: 3 });
    disturb(tuned);
    await tuned.mergeAndUnload();
    const merged = hidden(model);
    for (const use of [
      () => tuned.parameters(),
      () => tuned.config,
      () => tuned.withTeacher(() => 0),
      () => tuned.setAdapter('default'),
      () => tuned.trainingPass(null),
    ]) {
      expect(use).toThrow(
        new ArgumentError(
          'the adapter was merged into its base by mergeAndUnload(); use the model that it returned, or give that a new adapter',
        ),
      );
    }
    await expect(tuned.mergeAndUnload()).rejects.toThrow(/was merged into its base/);
    await expect(tuned.addAdapter('two')).rejects.toThrow(/was merged into its base/);
    await expect(tuned.savePretrained(folder)).rejects.toThrow(/was merged into its base/);
    expect(tuned.names).toEqual([]);
    tuned.dispose();
    expect(hidden(model)).toEqual(merged);
    const next = await AdapterModel.create(model, { r: 2, initLoraWeights: 'pissa' });
    expectNear(hidden(model), merged, 1e-6);
    disturb(next, 300);
    expect(next.withTeacher(() => hidden(model))).toEqual(merged);
    const moved = hidden(model);
    await next.mergeAndUnload();
    expectNear(hidden(model), moved, 1e-5);
  });

  it('refuses what cannot be merged, and has changed nothing then', async () => {
    const tied = await AutoModelForCausalLM.fromPretrained(modelPath('llama-tied'));
    const head = await AdapterModel.create(tied, { r: 2, modulesToSave: ['lm_head'] });
    train(head);
    const logits = logitsOf(tied);
    await expect(head.mergeAndUnload()).rejects.toThrow(
      /lm_head.weight is trained apart from the weight that the model ties it to/,
    );
    await expect(head.mergeAndUnload()).rejects.toThrow(UnsupportedError);
    expect(logitsOf(tied)).toEqual(logits);
    tied.dispose();

    const model = new TinyModel();
    const tuned = await AdapterModel.create(model, { r: 3 });
    disturb(tuned);
    const moved = hidden(model);
    tuned.trainingPass({ step: 0, microBatch: 0 });
    await expect(tuned.mergeAndUnload()).rejects.toThrow(/a training step runs/);
    tuned.trainingPass(null);
    const adding = tuned.addAdapter('two');
    await expect(tuned.mergeAndUnload()).rejects.toThrow(/an adapter is being added/);
    await adding;
    expect(hidden(model)).toEqual(moved);
  });

  it('is undone by a failure: the adapter goes on as before', async () => {
    const model = new TinyModel({ width: 64 });
    const tuned = await AdapterModel.create(model, { r: 3 });
    disturb(tuned);
    const moved = hidden(model);
    await collectGarbage();
    const { liveBytes, liveTensors } = memoryStats();
    setMemoryLimit(liveBytes + 1024);
    try {
      const merging = tuned.mergeAndUnload();
      expect(() => tuned.parameters()).toThrow(/is being merged into its base/);
      await expect(merging).rejects.toMatchObject({ code: 'ERR_OUT_OF_MEMORY' });
    } finally {
      setMemoryLimit(0);
    }
    expect(hidden(model)).toEqual(moved);
    await collectGarbage();
    expect(memoryStats()).toMatchObject({ liveBytes, liveTensors });
    await tuned.mergeAndUnload();
    expectNear(hidden(model), moved, 1e-5);
  });
});
