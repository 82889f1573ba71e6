// The conditions for resuming a checkpoint: the same base model, by its content and not by its path, the same dtype, and the same
// kind of memory budget.
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { FullModel } from '../../lib/adapters/full_model.ts';
import { saveMerged } from '../../lib/adapters/merge.ts';
import type { TunedModel } from '../../lib/adapters/tuned_model.ts';
import {
  AutoModelForCausalLM,
  AutoModelForSequenceClassification,
} from '../../lib/models/index.ts';
import { mean, square } from '../../lib/ops/index.ts';
import { camel } from '../../lib/options/option.ts';
import { memoryStats } from '../../lib/runtime.ts';
import { warmUpHead } from '../../lib/train/head_warmup.ts';
import { differences } from '../../lib/train/identity.ts';
import { REGULARIZER_OPTIONS } from '../../lib/train/regularizers.ts';
import { Trainer, type TrainerOptions } from '../../lib/train/trainer.ts';
import { collectGarbage } from '../support/collect_garbage.ts';
import { fixturePath } from '../support/fixtures.ts';
import { kTinyBert, tinyLabelled } from '../support/tiny_classifier.ts';
import { tinyBatches, tinySource } from '../support/tiny_model.ts';

const kModel = fixturePath('architectures/llama-untied-gqa/model');

let folder: string;
/** The output folder of a LoRA run of two steps on kModel. */
let output: string;
/** Copies of kModel: an exact one, one with an adapter merged into it, one with another epsilon. */
let [copy, merged, looser] = ['', '', ''];

const adapted = async (path: string, dtype: 'f32' | 'bf16' = 'f32') =>
  AdapterModel.create(await AutoModelForCausalLM.fromPretrained(path, { dtype }), {
    r: 2,
    targetModules: ['q_proj', 'v_proj'],
  });

const train = (tuned: TunedModel, more: Partial<TrainerOptions>) =>
  new Trainer({
    tuned,
    data: tinySource(tinyBatches({ count: 2, rows: 12, vocabulary: 96 })),
    learningRate: 0.01,
    lrSchedulerType: 'constant',
    maxSteps: 2,
    ...more,
  }).train();

const resume = (tuned: TunedModel, more: Partial<TrainerOptions> = {}) =>
  train(tuned, { output, resume: true, ...more });

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'balora-identity-'));
  [output, copy, merged, looser] = ['run', 'copy', 'merged', 'looser'].map((name) =>
    join(folder, name),
  ) as [string, string, string, string];
  const tuned = await adapted(kModel);
  await train(tuned, { output });
  await saveMerged(tuned, merged);
  for (const to of [copy, looser]) cpSync(kModel, to, { recursive: true });
  const config = JSON.parse(readFileSync(join(looser, 'config.json'), 'utf8'));
  expect(config.rms_norm_eps).toBeGreaterThan(0);
  config.rms_norm_eps *= 10;
  writeFileSync(join(looser, 'config.json'), JSON.stringify(config));
});
afterAll(() => rmSync(folder, { recursive: true }));

describe('a checkpoint', () => {
  it('is resumed on a copy of its base model', async () => {
    expect(await resume(await adapted(copy))).toMatchObject({ reason: 'completed', steps: 2 });
  });

  it('is refused on a model of the same shape with merged weights or another configuration', async () => {
    const said =
      /baseModel: was "llama, \d+ parameters, configuration (\w{16}), files (\w{16})", is "llama, /;
    for (const path of [merged, looser]) {
      const refused = resume(await adapted(path));
      await expect(refused, path).rejects.toThrow(said);
    }
  });

  it('is refused after another preparation', async () => {
    const [prepared, path] = [{ headWarmupEpochs: 2 }, join(folder, 'prepared')];
    await train(await adapted(kModel), { output: path, preparation: prepared });
    const again = async (preparation?: TrainerOptions['preparation']) =>
      resume(await adapted(kModel), { output: path, ...(preparation && { preparation }) });
    expect(await again(prepared)).toMatchObject({ reason: 'completed' });
    await expect(again({ headWarmupEpochs: 3 })).rejects.toThrow('(headWarmupEpochs: was 2, is 3)');
    await expect(again()).rejects.toThrow('(headWarmupEpochs: was 2, is not set)');
  });

  it('is refused in another dtype', async () => {
    await expect(resume(await adapted(kModel, 'bf16'))).rejects.toThrow(
      /dtype: was "f32", is "bf16"/,
    );
  });

  it('is refused where shared rows are computed one by one', async () => {
    const tuned = await adapted(kModel);
    tuned.model.sharePrefixes = false;
    await expect(resume(tuned)).rejects.toThrow(
      /sharePrefixes: was not set, is false\); give the options of that run, or begin anew with overwrite: true$/,
    );
  });

  it("of a loss of one's own knows no regularizers, which that loss replaces", async () => {
    const path = join(folder, 'own');
    const load = async () => {
      const model = await AutoModelForCausalLM.fromPretrained(kModel, { dtype: 'f32' });
      return AdapterModel.create(model, { r: 2, method: 'balora', targetModules: ['q_proj'] });
    };
    const loss: TrainerOptions['loss'] = ({ hidden }) => ({ loss: mean(square(hidden)) });
    const tuned = await load();
    const { regularizers } = new Trainer({ tuned, data: tinySource([]), loss }).options;
    expect([regularizers.consistencyWeight, regularizers.svdWeight]).toEqual([0, 0]);
    await train(tuned, { output: path, loss });
    const config = JSON.parse(readFileSync(join(path, 'run/config.json'), 'utf8'));
    for (const part of [config.values, config.identity]) {
      const options = Object.keys(part).map(camel);
      expect(options.filter((key) => Object.hasOwn(REGULARIZER_OPTIONS, key))).toEqual([]);
    }
    expect((await train(await load(), { output: path, loss, resume: true })).steps).toBe(2);
    await expect(train(await load(), { output: path, resume: true })).rejects.toThrow(
      /customLoss: was true, is false/,
    );
  });

  it('leaves nothing in memory where it is refused', async () => {
    const tuned = await adapted(kModel);
    const left: number[] = [];
    for (let pass = 0; pass < 3; pass++) {
      await expect(resume(tuned, { seed: 1 })).rejects.toThrow(/seed: was/);
      await collectGarbage();
      left.push(memoryStats().liveBytes);
    }
    expect(left).toEqual([left[0], left[0], left[0]]);
  });

  it('is refused under another kind of memory budget', async () => {
    await expect(resume(await adapted(kModel), { memoryBudget: 'min' })).rejects.toThrow(
      /bit for bit \(memoryBudget: was not set, is "min"\);/,
    );
    const bounded = join(folder, 'bounded');
    await train(await adapted(kModel), { output: bounded, memoryBudget: 2 ** 40 });
    const again = { output: bounded, memoryBudget: 2 ** 39 };
    expect((await resume(await adapted(kModel), again)).steps).toBe(2);
  });

  it('of full fine-tuning is resumed by a model with changed weights, but not with another teacher', async () => {
    const load = (path: string) => AutoModelForCausalLM.fromPretrained(path, { trainable: true });
    const alone = join(folder, 'alone');
    await train(new FullModel(await load(kModel)), { output: alone });
    expect((await resume(new FullModel(await load(merged)), { output: alone })).steps).toBe(2);
    const taught = join(folder, 'taught');
    const beside = async (path: string) =>
      new FullModel(await load(kModel), { teacher: await load(path) });
    await train(await beside(kModel), { output: taught });
    await expect(resume(await beside(merged), { output: taught })).rejects.toThrow(
      /baseModel: was/,
    );
  });

  // The bits of a head after its warm-up depend on the number of threads and the device, which may differ when resuming.
  it('of a classifier is resumed with another warmed-up head', async () => {
    const place = join(folder, 'classifier');
    const data = await tinyLabelled(8, { batchSize: 4 });
    const begin = async (more: { epochs: number; resume?: boolean }) => {
      const model = await AutoModelForSequenceClassification.fromPretrained(kTinyBert, {
        numLabels: 3,
        newHead: true,
      });
      await warmUpHead(model, data, { epochs: more.epochs });
      const tuned = await AdapterModel.create(model, { r: 2 });
      const { resume = false } = more;
      return new Trainer({ tuned, data, maxSteps: 2, output: place, resume }).train();
    };
    await begin({ epochs: 1 });
    expect((await begin({ epochs: 2, resume: true })).steps).toBe(2);
  });
});

it('an option that a checkpoint lacks counts as having its default', () => {
  expect(differences({ svdTopK: 7 }, { svdTopK: 7, svdWeight: 0, variant: 'iclr' })).toEqual([]);
  expect(differences({ svdTopK: 7 }, { svdTopK: 7, svdWeight: 0.1 })).toEqual([
    'svdWeight: was 0, is 0.1',
  ]);
});
