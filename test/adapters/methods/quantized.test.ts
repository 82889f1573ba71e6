/** QPiSSA and LoftQ: the base that each adapter has of its own, what is saved of it, and what is refused. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../../lib/adapters/adapter_model.ts';
import type { AdapterConfigInput } from '../../../lib/adapters/create.ts';
import { saveMerged } from '../../../lib/adapters/merge.ts';
import { type QuantizedBase, quantizationErrors } from '../../../lib/adapters/quantized_base.ts';
import { storageBytes } from '../../../lib/io/blocks.ts';
import { loadSafetensors, saveSafetensors } from '../../../lib/io/safetensors.ts';
import { AutoModelForCausalLM, type CausalLM, saveModel } from '../../../lib/models/index.ts';
import { ParameterWatch } from '../../../lib/nn/parameter_watch.ts';
import { copy_, matmul, mul } from '../../../lib/ops/index.ts';
import { memoryStats, synchronize } from '../../../lib/runtime.ts';
import { noGrad, scope, type Tensor } from '../../../lib/tensor.ts';
import { Trainer } from '../../../lib/train/trainer.ts';
import type { TrainerOptions } from '../../../lib/train/trainer_options.ts';
import { collectGarbage } from '../../support/collect_garbage.ts';
import { fixturePath } from '../../support/fixtures.ts';
import { disturb, expectNear, hidden } from '../../support/tiny_adapters.ts';
import { TinyModel, tinyBatches, tinySource } from '../../support/tiny_model.ts';

const kModel = fixturePath('architectures/llama-untied-gqa/model');
const out = mkdtempSync(join(tmpdir(), 'balora-quantized-'));
afterAll(() => rmSync(out, { recursive: true, force: true }));
let count = 0;
const next = (): string => join(out, `${count++}`);

const load = (options: { dtype?: 'f32' | 'bf16'; baseFormat?: 'nf4' } = {}): Promise<CausalLM> =>
  AutoModelForCausalLM.fromPretrained(kModel, options);

const kIds = Int32Array.of(1, 5, 2, 7, 3, 9, 4);
const logitsOf = (model: CausalLM): number[] =>
  scope(() =>
    noGrad(() => {
      const positions = kIds.map((_, i) => i);
      const cuSeqlens = Int32Array.of(0, kIds.length);
      const states = model.forward({ inputIds: kIds, positions, cuSeqlens });
      return Array.from(model.logits(states).dataSync() as Float32Array);
    }),
  );

const kConfigs: [string, AdapterConfigInput][] = [
  ['qpissa', { method: 'qpissa', r: 4, loraAlpha: 8 }],
  ['qpissa, three times', { initLoraWeights: 'qpissa_iter_3', r: 3 }],
  ['loftq', { method: 'loftq', r: 4, loraAlpha: 8 }],
  ['loftq, five times', { method: 'loftq', r: 4, loftqConfig: { loftqIter: 5 } }],
  [
    'loftq of several ranks',
    {
      ...{ initLoraWeights: 'loftq_iter_2', r: 4, loraAlpha: 14, useRslora: true },
      ...{ rankPattern: { q_proj: 2 }, alphaPattern: { down_proj: 3 } },
    },
  ],
];

describe.each(kConfigs)('%s', (_, config) => {
  describe.each(['f32', 'bf16'] as const)('%s', (dtype) => {
    it('starts as its teacher, bit for bit, and leaves the base alone', async () => {
      const model = await load({ dtype });
      const base = logitsOf(model);
      const tuned = await AdapterModel.create(model, config);
      const start = logitsOf(model);
      expect(start).not.toEqual(base);
      expect(tuned.withTeacher(logitsOf)).toEqual(start);
      disturb(tuned, 1, 0.1);
      expect(logitsOf(model)).not.toEqual(start);
      expect(tuned.withTeacher(logitsOf)).toEqual(start);
      tuned.enabled = false;
      expect(logitsOf(model)).toEqual(base);
      tuned.dispose();
      expect(logitsOf(model)).toEqual(base);
      model.dispose();
    });

    it('is read again on the original base, bit for bit', async () => {
      const tuned = await AdapterModel.create(await load({ dtype }), config);
      const start = logitsOf(tuned.model);
      disturb(tuned, 1, 0.1);
      const expected = logitsOf(tuned.model);
      const folder = next();
      await tuned.savePretrained(folder);
      const again = await AdapterModel.fromPretrained(await load({ dtype }), folder);
      expect(again.warnings).toEqual([]);
      expect(logitsOf(again.model)).toEqual(expected);
      expect(again.withTeacher(logitsOf)).toEqual(start);
      const facts = ({ modules }: AdapterModel) =>
        modules.map(({ name, r, scale, alpha }) => `${name} ${r} ${scale} ${alpha}`).sort();
      expect(facts(again)).toEqual(facts(tuned));
      // Saved once more, it is the same file.
      const second = next();
      await again.savePretrained(second);
      const bytes = (path: string): string =>
        readFileSync(join(path, 'adapter_model.safetensors'), 'base64');
      expect(bytes(second)).toBe(bytes(folder));
      for (const one of [again, tuned]) {
        one.dispose();
        one.model.dispose();
      }
    });
  });

  it('is nearer to the weights than plain NF4, by the distance that is told', async () => {
    const tuned = await AdapterModel.create(await load(), config);
    const errors = await quantizationErrors(tuned.modules);
    expect(errors?.start).toBeLessThan(errors?.plain as number);
    expect(errors?.start).toBeGreaterThan(0);
    tuned.dispose();
    tuned.model.dispose();
  });

  it('is nearly the same as a plain LoRA on the original base, as PEFT reads it', async () => {
    const tuned = await AdapterModel.create(await load(), config);
    disturb(tuned, 1, 0.1);
    const folder = next();
    await tuned.savePretrained(folder);
    const text = readFileSync(join(folder, 'adapter_config.json'), 'utf8');
    const { init_lora_weights: init, loftq_config: loftq } = JSON.parse(text);
    expect([init, loftq]).toEqual([true, {}]);
    for (const module of tuned.modules) {
      const { a, b } = module.variant.toLora(module);
      expect([a.shape[0], b.shape[1]]).toEqual([2 * module.r, 2 * module.r]);
      for (const one of [a, b]) one.dispose();
    }
    tuned.dispose();
    tuned.model.dispose();
  });

  it('merges into the codes with the trained pair', async () => {
    const tuned = await AdapterModel.create(await load(), config);
    disturb(tuned, 1, 0.1);
    const expected = logitsOf(tuned.model);
    const folder = next();
    await saveMerged(tuned, folder);
    const merged = await AutoModelForCausalLM.fromPretrained(folder);
    expectNear(logitsOf(merged), expected, 1e-4);
    merged.dispose();
    const same = await tuned.mergeAndUnload();
    expectNear(logitsOf(same), expected, 1e-4);
    same.dispose();
  });
});

it('quantises W less the first pair, in its own blocks, and frees them', async () => {
  const model = new TinyModel({ width: 32 });
  await collectGarbage();
  await synchronize();
  const before = memoryStats().liveBytes;
  const tuned = await AdapterModel.create(model, { method: 'qpissa', r: 4, loraAlpha: 8 });
  for (const { linear, frozen, quantized, scale, pair } of tuned.modules) {
    const { weight } = quantized as QuantizedBase;
    expect(storageBytes(weight)).toBeLessThan(linear.weight.size);
    const rest = scope(() =>
      noGrad(() => {
        const numbers = (x: Tensor): number[] => Array.from(x.dataSync() as Float32Array);
        const { a, b } = frozen as typeof pair;
        const first = numbers(mul(matmul(b, a), scale));
        return numbers(linear.weight).map((value, i) => value - (first[i] as number));
      }),
    );
    const codes = scope(() => Array.from(weight.to('f32').dataSync() as Float32Array));
    for (let block = 0; block < rest.length; block += 64) {
      const largest = Math.max(...rest.slice(block, block + 64).map(Math.abs));
      // The two neighbouring codes that are furthest apart are 0.304 of the largest from each other.
      codes.slice(block, block + 64).forEach((code, i) => {
        expect(Math.abs(code - (rest[block + i] as number))).toBeLessThan(0.153 * largest + 1e-6);
      });
    }
  }
  tuned.dispose();
  await collectGarbage();
  await synchronize();
  expect(memoryStats().liveBytes).toBe(before);
});

it('lives beside other adapters on one base, each with codes of its own', async () => {
  const model = new TinyModel();
  const base = hidden(model);
  const tuned = await AdapterModel.create(model, { method: 'qpissa', r: 2 });
  const first = hidden(model);
  await tuned.addAdapter('loftq', { method: 'loftq', r: 3 });
  await tuned.addAdapter('pissa', { method: 'pissa', r: 2 });
  expect(hidden(model)).toEqual(first);
  tuned.setAdapter('loftq');
  expect(hidden(model)).not.toEqual(first);
  expect(tuned.withTeacher(() => hidden(model))).toEqual(hidden(model));
  tuned.setAdapter('pissa');
  expectNear(hidden(model), base, 1e-5);
  expect(tuned.withTeacher(() => hidden(model))).toEqual(base);
  tuned.setAdapter('default');
  expect(hidden(model)).toEqual(first);
  tuned.enabled = false;
  expect(hidden(model)).toEqual(base);
  tuned.dispose();
});

describe('refused is', () => {
  it('a base that is quantised already', async () => {
    const model = await load({ baseFormat: 'nf4' });
    await expect(AdapterModel.create(model, { method: 'qpissa', r: 2 })).rejects.toThrow(
      /^initLoraWeights qpissa quantises the weights itself, and .* is in blocks \(NF4\) already; load the unquantised model without baseFormat/,
    );
    model.dispose();
  });

  it.each([
    [{ useDora: true }, /^loraConfig: useDora cannot go with initLoraWeights "loftq"/],
    [
      { loftqConfig: { loftqBits: 8 } },
      /^loftq_config: loftq_bits = 8 is not supported, only 4 is$/,
    ],
    [{ loftqConfig: { loftqIter: 0 } }, /loftq_iter must be a whole number, at least 1, got 0$/],
    [
      { loftqConfig: { loftqIters: 5 } },
      /^loftq_config: unknown option "loftqIters" .did you mean "loftq_iter"\?.$/,
    ],
    [{ loraBias: true }, /loraBias needs initLoraWeights true or false, got "loftq"/],
  ])('%o', async (config, message) => {
    const model = new TinyModel();
    await expect(
      AdapterModel.create(model, { initLoraWeights: 'loftq', r: 2, ...config }),
    ).rejects.toThrow(message);
  });

  it('a number of rounds that is none', async () => {
    for (const init of ['loftq_iter_0', 'qpissa_iter_', 'loftq_iter_1.5']) {
      await expect(
        AdapterModel.create(new TinyModel(), { initLoraWeights: init as 'loftq', r: 2 }),
      ).rejects.toThrow(/must be/);
    }
  });

  it('a model whose weights give other codes, unless that is allowed', async () => {
    const tuned = await AdapterModel.create(await load(), { method: 'loftq', r: 2 });
    const folder = next();
    await tuned.savePretrained(folder);
    const [{ linear }] = tuned.modules as [(typeof tuned.modules)[0]];
    const changed = next();
    tuned.enabled = false;
    await saveModel(tuned.model, changed, {
      replace: (_, weight) => (weight === linear.weight ? mul(weight, 1.5) : null),
    });
    const other = await AutoModelForCausalLM.fromPretrained(changed);
    await expect(AdapterModel.fromPretrained(other, folder)).rejects.toThrow(
      /the adapter is used on codes of its base, and the weights of this model give others/,
    );
    const read = await AdapterModel.fromPretrained(other, folder, { allowOtherBase: true });
    expect(read.warnings.join()).toMatch(/give others/);
    for (const one of [read, tuned]) {
      one.dispose();
      one.model.dispose();
    }
  });

  it('a folder whose pairs are not two halves, of which nothing is kept', async () => {
    const config = { initLoraWeights: 'loftq_iter_2', r: 2 } as const;
    const tuned = await AdapterModel.create(await load(), config);
    const folder = next();
    await tuned.savePretrained(folder);
    // The last module's pairs are missing among those that its base was quantised without.
    const path = join(folder, 'quantized', 'adapter_model.safetensors');
    const { tensors } = await loadSafetensors(path);
    const last = [...tuned.modules]
      .map(({ name }) => name)
      .sort()
      .at(-1) as string;
    const rest = Object.entries(tensors).filter(([name]) => !name.includes(`.${last}.`));
    await saveSafetensors(path, Object.fromEntries(rest));
    for (const tensor of Object.values(tensors)) tensor.dispose();
    const model = await load();
    await collectGarbage();
    await synchronize();
    const before = memoryStats().liveBytes;
    await expect(AdapterModel.fromPretrained(model, folder)).rejects.toThrow(
      /does not hold what its base is made of/,
    );
    await synchronize();
    expect(memoryStats().liveBytes).toBe(before);
    for (const one of [tuned, tuned.model, model]) one.dispose();
  });

  it('a folder without the pairs that its base was quantised without', async () => {
    const tuned = await AdapterModel.create(await load(), {
      initLoraWeights: 'loftq_iter_2',
      r: 2,
    });
    const folder = next();
    await tuned.savePretrained(folder);
    rmSync(join(folder, 'quantized'), { recursive: true });
    await expect(AdapterModel.fromPretrained(await load(), folder)).rejects.toThrow(
      /the folder quantized is missing, from which the adapter's base is made/,
    );
    tuned.dispose();
    tuned.model.dispose();
  });
});

it('a recorded pass is not repeated on codes that have been made again', async () => {
  const tuned = await AdapterModel.create(await load(), { method: 'qpissa', r: 2 });
  const watch = new ParameterWatch(tuned.model);
  const sameTwice = (): [boolean, boolean] => [watch.isSame(), watch.isSame()];
  expect(sameTwice()).toEqual([false, true]);
  expect(tuned.withTeacher(sameTwice)).toEqual([false, true]);
  expect(sameTwice()).toEqual([false, true]);
  tuned.restore(tuned.state(), 'the state');
  expect(sameTwice()).toEqual([false, true]);
  tuned.dispose();
  tuned.model.dispose();
});

it('a run is not resumed with another teacher than its own', async () => {
  const run = (tuned: AdapterModel, output: string, more: Partial<TrainerOptions> = {}) =>
    new Trainer({
      ...{ tuned, data: tinySource(tinyBatches({ count: 2 })), learningRate: 0, ...more },
      ...{ output, saveSteps: 1 },
    }).train();
  // Checkpoints hold the first pairs: those of one start, or others.
  const checkpoints: string[] = [];
  for (const factor of [1, 1, 2]) {
    const tuned = await AdapterModel.create(await load(), { method: 'loftq', r: 2 });
    const first = Object.entries(tuned.state()).filter(([name]) => name.endsWith('.initial_B'));
    for (const [, value] of first) scope(() => noGrad(() => copy_(value, mul(value, factor))));
    const output = next();
    await run(tuned, output, { maxSteps: 1 });
    checkpoints.push(join(output, 'run', 'checkpoints', 'step-1'));
    for (const one of [tuned, tuned.model]) one.dispose();
  }
  const read = async (i: number) =>
    AdapterModel.fromPretrained(await load(), checkpoints[i] as string);
  const [mine, same, other] = [await read(0), await read(1), await read(2)];
  const output = next();
  const stop = new AbortController();
  await run(mine, output, {
    ...{ maxSteps: 2, signal: stop.signal },
    callbacks: [({ type }) => void (type === 'step' && stop.abort())],
  });
  await expect(run(other, output, { maxSteps: 2, resume: true })).rejects.toThrow(
    /belongs to another run .*quantizedTeacher/,
  );
  await run(same, output, { maxSteps: 2, resume: true });
  for (const one of [mine, same, other]) {
    one.dispose();
    one.model.dispose();
  }
});

it('the residual form holds the values of the codes', async () => {
  const tuned = await AdapterModel.create(await load(), { method: 'qpissa', r: 2 });
  disturb(tuned, 1, 0.1);
  const expected = logitsOf(tuned.model);
  const start = tuned.withTeacher(logitsOf);
  const folder = next();
  await tuned.savePretrained(folder, { form: 'residual' });
  const base = await AutoModelForCausalLM.fromPretrained(join(folder, 'residual'));
  const read = await AdapterModel.fromPretrained(base, folder);
  expectNear(logitsOf(base), expected, 1e-4);
  expectNear(read.withTeacher(logitsOf), start, 1e-4);
  for (const one of [read, tuned]) {
    one.dispose();
    one.model.dispose();
  }
});
