/**
 * Trainings of methods with a rule of their own against references in float64, made with PEFT and after the authors' code: losses before
 * each step and after the last, and the trained values.
 */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import { stateName } from '../../lib/adapters/adapted_linear.ts';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import type { LoraConfigInput } from '../../lib/adapters/config.ts';
import type { AdapterConfigInput, AdapterMethodName } from '../../lib/adapters/create.ts';
import { saveMerged } from '../../lib/adapters/merge.ts';
import { AutoModelForCausalLM, type CausalLM } from '../../lib/models/index.ts';
import { copy_ } from '../../lib/ops/index.ts';
import { noGrad, scope, type Tensor, tensor } from '../../lib/tensor.ts';
import { Trainer, type TrainerOptions } from '../../lib/train/trainer.ts';
import type { StepRecord } from '../../lib/train/types.ts';
import { accumulator } from '../support/accumulate.ts';
import { values } from '../support/compare.ts';
import { fixturePath, readJson, relativeError } from '../support/fixtures.ts';
import { type GoldenArray, goldenArray, goldenArrays } from '../support/golden.ts';
import { goldenBatch, windowOf } from '../support/golden_batch.ts';
import { logitError } from '../support/golden_logits.ts';
import { describeShared, sharedPath } from '../support/shared.ts';
import { tinySource } from '../support/tiny_model.ts';

const kMethods = 'golden/methods/variants';
const kModel = 'architectures/llama-untied-gqa';

interface Facts {
  readonly config: { readonly lr: number; readonly weight_decay: number };
  readonly trajectory: {
    readonly losses_before_each_step_and_at_the_end_f64: readonly number[];
  };
  readonly tolerance_trajectory: { readonly losses_abs: number; readonly values_abs: number };
}

const out = mkdtempSync(join(tmpdir(), 'balora-method-training-'));
afterAll(() => rmSync(out, { recursive: true, force: true }));

const padded = goldenBatch(goldenArrays(fixturePath(`${kModel}/inputs.safetensors`)), {
  ids: 'input_ids',
  mask: 'attention_mask',
  labels: 'labels',
});

const { batch } = padded;

/** Options of a training on the golden batch at a constant rate, without clipping. */
const kPlain = {
  data: tinySource([batch]),
  lrSchedulerType: 'constant',
  warmupSteps: 0,
  maxGradNorm: 0,
} satisfies Partial<TrainerOptions>;

async function losses(tuned: AdapterModel, options: Partial<TrainerOptions>): Promise<number[]> {
  const found: number[] = [];
  const onStep = ({ record: { taskLoss } }: { record: StepRecord }) => found.push(taskLoss);
  for await (const event of new Trainer({ ...kPlain, tuned, ...options }).run()) {
    if (event.type === 'step') onStep(event);
  }
  const last = await accumulator(tuned).accumulate(windowOf(batch));
  tuned.zeroGradients();
  return [...found, last.taskLoss];
}

function largestDifference(found: ArrayLike<number>, expected: ArrayLike<number>): number {
  expect(found).toHaveLength(expected.length);
  return Math.max(
    ...Array.from(expected, (value, i) => {
      const difference = Math.abs((found[i] as number) - value);
      return Number.isNaN(difference) ? Number.POSITIVE_INFINITY : difference;
    }),
  );
}

const path = (name: string): string => sharedPath(`${kMethods}/${name}`);

const golden = (file: string): Map<string, GoldenArray> => goldenArrays(path(file));

const model = (): Promise<CausalLM> =>
  AutoModelForCausalLM.fromPretrained(fixturePath(`${kModel}/model`), { dtype: 'f32' });

/** A fresh adapter with golden first values. */
async function started(
  config: AdapterConfigInput,
  first: Map<string, GoldenArray>,
): Promise<AdapterModel> {
  const tuned = await AdapterModel.create(await model(), config);
  const state = tuned.state();
  for (const [key, { data, shape }] of first) {
    const target = state[nameOf(key)];
    scope(() => noGrad(() => copy_(target as never, tensor(data as Float32Array, { shape }))));
  }
  return tuned;
}

/** The name in an adapter's state of a golden tensor. */
function nameOf(key: string): string {
  const [, module, rest] = /base_model\.model\.(.*_proj)\.(.*)$/.exec(key) as RegExpExecArray;
  return stateName(module as string, rest as string);
}

describeShared('optimisers of methods', [kMethods], () => {
  const factsOf = (name: string): Facts =>
    JSON.parse(readFileSync(path(`${name}/expected.json`), 'utf8')) as Facts;
  const adapterOf = async (name: string, dtype: 'f32' | 'f64', method?: AdapterMethodName) =>
    AdapterModel.fromPretrained(
      await AutoModelForCausalLM.fromPretrained(fixturePath(`${kModel}/model`), { dtype }),
      path(`${name}/adapter`),
      method === undefined ? {} : { method },
    );

  it.each([
    ['lora_fa', { method: 'lora_fa' }],
    ['riemannian', { optim: 'riemannian' }],
    ['loraplus', { loraplusLrRatio: 16 }],
  ] as const)(
    '%s: five steps',
    async (name, {
      method,
      ...options
    }: {
      method?: AdapterMethodName;
      optim?: 'riemannian';
      loraplusLrRatio?: number;
    }) => {
      const { config, trajectory, tolerance_trajectory: tolerance } = factsOf(name);
      const tuned = await adapterOf(name, 'f32', method);
      const found = await losses(tuned, {
        ...options,
        learningRate: config.lr,
        weightDecay: config.weight_decay,
        maxSteps: 5,
      });
      const expected = trajectory.losses_before_each_step_and_at_the_end_f64;
      expect(largestDifference(found, expected)).toBeLessThanOrEqual(tolerance.losses_abs);
      const arrays = goldenArrays(path(`${name}/expected.safetensors`));
      for (const { name: key, tensor } of tuned.parameters()) {
        const golden = goldenArray(arrays, `after5.base_model.model.${key}.weight`).data;
        const values = tensor.dataSync() as Float32Array;
        const error = largestDifference(values, golden as Float32Array);
        expect(error, key).toBeLessThanOrEqual(tolerance.values_abs);
        // A is left as it is, and gets its gradient back after the run.
        expect(tensor.requiresGrad, key).toBe(true);
      }
    },
  );
});

interface AdaLoraStep {
  readonly t: number;
  readonly loss_without_orth: number;
  readonly loss_with_orth: number;
  readonly orth_mean: number;
  readonly threshold: number | null;
  /** Left out for a step that makes no choice before the first. */
  readonly mask?: readonly (readonly number[])[] | null;
}

interface AdaLoraFacts {
  readonly loss: number;
  readonly tolerance: { logits_abs: number; loss_abs: number; grad_abs_over_max_abs: number };
  readonly trajectory: {
    readonly order_of_modules: readonly string[];
    readonly steps: readonly AdaLoraStep[];
    readonly loss_without_orth_at_the_end: number;
  };
  readonly tolerance_trajectory: {
    readonly losses_abs: number;
    readonly E_abs: number;
    readonly values_abs: number;
    readonly score_relative_to_threshold: number;
  };
}

describeShared('AdaLoRA', [kMethods], () => {
  const facts = readJson(path('adalora/expected.json')) as AdaLoraFacts;
  const { trajectory, tolerance, tolerance_trajectory: bounds } = facts;
  const expected = golden('adalora/expected.safetensors');
  const config: LoraConfigInput = {
    ...{ peftType: 'ADALORA', initR: 6, targetR: 3, tinit: 2, tfinal: 3, deltaT: 2, loraAlpha: 8 },
    orthRegWeight: 0.5,
  };
  const saved = join(out, 'adalora');

  it('its run of 14 steps: losses, scores, masks, gradients and values', async () => {
    const tuned = await started(config, golden('adalora/start.safetensors'));
    const state = tuned.state();
    const read = (name: string): Float32Array => state[name]?.dataSync() as Float32Array;
    const modules = trajectory.order_of_modules;
    expect(tuned.modules.map(({ name }) => name)).toEqual(modules);
    let [t, compared] = [0, 0];
    const gradients = (key: string, grad: ArrayLike<number>): void => {
      const wanted = expected.get(`trajectory.step${t + 1}.grad.base_model.model.${key}`);
      if (wanted === undefined) return;
      compared++;
      const error = relativeError(grad, Float64Array.from(wanted.data as Float32Array));
      expect(error, `${t + 1} ${key}`).toBeLessThanOrEqual(tolerance.grad_abs_over_max_abs);
    };
    const trainer = new Trainer({
      ...{ ...kPlain, tuned, learningRate: 5e-3, maxSteps: 14 },
      afterBackward: ({ parameters }) => {
        for (const {
          name,
          tensor: { grad },
        } of parameters)
          gradients(name, values(grad as never));
      },
    });
    for await (const event of trainer.run()) {
      if (event.type !== 'step') continue;
      const step = trajectory.steps[t++] as AdaLoraStep;
      const { record } = event;
      const near = (found: number, wanted: number): void =>
        expect(Math.abs(found - wanted), `step ${t}`).toBeLessThanOrEqual(bounds.losses_abs);
      near(record.taskLoss, step.loss_without_orth);
      near(record.loss, step.loss_with_orth);
      expect(record.terms?.orthogonality?.weight).toBe(0.5);
      near(record.terms?.orthogonality?.value as number, step.orth_mean);

      const e = modules.flatMap((name) => Array.from(read(`${name}.lora_E`)));
      const wantedE = goldenArray(expected, `trajectory.step${t}.E`).data as Float32Array;
      expect(largestDifference(e, wantedE), `E ${t}`).toBeLessThanOrEqual(bounds.E_abs);
      if (step.mask) {
        expect(e.map((value) => (value === 0 ? 0 : 1))).toEqual(step.mask.flat());
      }
      const scores = expected.get(`trajectory.step${t}.score`);
      if (scores === undefined) continue;
      const found = modules.flatMap((name) => scoresOf(read, name));
      const scale = step.threshold ?? Math.max(...(scores.data as Float64Array));
      expect(largestDifference(found, scores.data as Float64Array) / scale).toBeLessThanOrEqual(
        bounds.score_relative_to_threshold,
      );
    }
    expect([t, compared]).toEqual([14, 14 * 2 * 3]);
    for (const [key, { data }] of expected) {
      if (!key.startsWith('trajectory.final.')) continue;
      const error = largestDifference(read(nameOf(key)), data as Float32Array);
      expect(error, key).toBeLessThanOrEqual(bounds.values_abs);
    }
    const last = await accumulator(tuned).accumulate(windowOf(batch));
    const lossError = Math.abs(last.taskLoss - trajectory.loss_without_orth_at_the_end);
    expect(lossError).toBeLessThanOrEqual(bounds.losses_abs);
    await tuned.savePretrained(saved);
  });

  it('the folder that its run writes is that of PEFT', () => {
    expectFolder(saved, path('adalora/adapter'), bounds.values_abs);
  });

  it("PEFT's folder: logits, loss and gradients, and the same folder again", async () => {
    const tuned = await AdapterModel.fromPretrained(await model(), path('adalora/adapter'));
    expect(tuned.warnings).toEqual([]);
    const logits = goldenArray(expected, 'logits');
    expect(logitError(tuned.model, padded, logits)).toBeLessThanOrEqual(tolerance.logits_abs);
    const { loss } = await accumulator(tuned).accumulate(windowOf(batch));
    expect(Math.abs(loss - facts.loss)).toBeLessThanOrEqual(tolerance.loss_abs);
    const pattern = tuned.config.keptTriplets as Record<string, boolean[]>;
    for (const { name, tensor: parameter } of tuned.parameters()) {
      const { data, shape } = goldenArray(expected, `grad.base_model.model.${name}`);
      const kept = pattern[name.replace(/lora_.$/, 'lora_E')] as boolean[];
      const grad = rowsOf(values(parameter.grad as never), kept, name.endsWith('lora_B'));
      expect(grad).toHaveLength((shape[0] as number) * (shape[1] as number));
      expect(
        relativeError(grad, Float64Array.from(data as Float32Array)),
        name,
      ).toBeLessThanOrEqual(tolerance.grad_abs_over_max_abs);
    }
    const again = join(out, 'adalora-again');
    await tuned.savePretrained(again);
    expectFolder(again, path('adalora/adapter'), 0);
    const trainer = new Trainer({ ...kPlain, tuned, maxSteps: 14 });
    await expect(trainer.train()).rejects.toThrow('an earlier run has chosen the ranks');
  });

  it('as a plain LoRA, merged, and in one file with each rank that is left', async () => {
    const tuned = await AdapterModel.fromPretrained(await model(), path('adalora/adapter'));
    const [plain, merged] = [join(out, 'adalora-lora'), join(out, 'adalora-merged')];
    await tuned.savePretrained(plain, { form: 'plain-lora' });
    await saveMerged(tuned, merged);
    const logits = goldenArray(expected, 'logits');
    const again = await AdapterModel.fromPretrained(await model(), plain);
    expect(again.modules).toHaveLength(20); // one has no triplet left
    const ranks = Object.values(tuned.config.keptTriplets as Record<string, boolean[]>).map(
      (kept) => kept.filter(Boolean).length,
    );
    expect(again.modules.map(({ r }) => r).sort()).toEqual(ranks.filter((r) => r > 0).sort());
    expect(logitError(again.model, padded, logits)).toBeLessThanOrEqual(tolerance.logits_abs);
    const whole = await AutoModelForCausalLM.fromPretrained(merged, { dtype: 'f32' });
    expect(logitError(whole, padded, logits)).toBeLessThanOrEqual(tolerance.logits_abs);
  });
});

interface DashFacts {
  readonly loss: number;
  readonly tolerance: { logits_abs: number; loss_abs: number; grad_abs_over_max_abs: number };
  readonly trajectory: {
    readonly losses_before_each_step_and_at_the_end_f64: readonly number[];
    readonly directions: Readonly<Record<string, readonly number[]>>;
  };
  readonly tolerance_trajectory: { readonly losses_abs: number; readonly values_abs: number };
}

describeShared('LoRA-Dash', [kMethods], () => {
  const facts = readJson(path('lora_dash/expected.json')) as DashFacts;
  const { trajectory, tolerance, tolerance_trajectory: bounds } = facts;
  const expected = golden('lora_dash/expected.safetensors');
  const end = golden('lora_dash/state.safetensors');
  const config: LoraConfigInput = {
    ...{ peftType: 'LORA_DASH', r: 4, loraAlpha: 8, dashWarmup: 4, dashIndex: 3 },
  };

  it('its run of 9 steps: losses, directions and values', async () => {
    const tuned = await started(config, golden('lora_dash/start.safetensors'));
    const state = tuned.state();
    const read = (name: string): Float32Array => state[name]?.dataSync() as Float32Array;
    let t = 0;
    const found: number[] = [];
    const trainer = new Trainer({ ...kPlain, tuned, learningRate: 1e-3, maxSteps: 9 });
    for await (const event of trainer.run()) {
      if (event.type !== 'step') continue;
      t++;
      found.push(event.record.taskLoss);
      if (t !== 4) continue;
      for (const [key, { data }] of expected) {
        if (!key.startsWith('warm.')) continue;
        const error = largestDifference(read(nameOf(key)), data as Float32Array);
        expect(error, key).toBeLessThanOrEqual(bounds.values_abs);
      }
      expect(read('model.layers.0.mlp.up_proj.lora_dash_calls')).toEqual(Float32Array.of(4, 0));
    }
    const last = await accumulator(tuned).accumulate(windowOf(batch));
    const losses = trajectory.losses_before_each_step_and_at_the_end_f64;
    expect(largestDifference([...found, last.taskLoss], losses)).toBeLessThanOrEqual(
      bounds.losses_abs,
    );
    for (const [key, { data, shape }] of end) {
      const values = read(nameOf(key));
      const wanted = data as Float32Array;
      // u and v of a direction may both have the other sign.
      const k = 3;
      const error = /weight_(u|vt)_top$/.test(key)
        ? Math.max(
            ...Array.from({ length: k }, (_, direction) => {
              const of = (list: Float32Array): number[] =>
                Array.from(list).filter((_, at) =>
                  shape[1] === k
                    ? at % k === direction
                    : Math.floor(at / (shape[1] as number)) === direction,
                );
              const [is, was] = [of(values), of(wanted)];
              return Math.min(
                largestDifference(is, was),
                largestDifference(
                  is,
                  was.map((value) => -value),
                ),
              );
            }),
          )
        : largestDifference(values, wanted);
      expect(error, key).toBeLessThanOrEqual(bounds.values_abs);
    }
    expect(read('model.layers.0.mlp.up_proj.lora_dash_calls')).toEqual(Float32Array.of(4, 1));
  });

  it('the adapter at its end: logits, loss, gradients, from its folder, merged and as a plain LoRA', async () => {
    const made = await started(config, end);
    for (const { parameters } of made.modules) {
      const calls = parameters.get('lora_dash_calls') as Tensor;
      scope(() => noGrad(() => copy_(calls, tensor([4, 1]))));
    }
    const [own, plain, merged] = ['dash', 'dash-lora', 'dash-merged'].map((name) =>
      join(out, name),
    ) as [string, string, string];
    await made.savePretrained(own);
    const tuned = await AdapterModel.fromPretrained(await model(), own);
    expect(tuned.warnings).toEqual([]);
    const logits = goldenArray(expected, 'logits');
    expect(logitError(tuned.model, padded, logits)).toBeLessThanOrEqual(tolerance.logits_abs);
    const { loss } = await accumulator(tuned).accumulate(windowOf(batch));
    expect(Math.abs(loss - facts.loss)).toBeLessThanOrEqual(tolerance.loss_abs);
    const grads = new Map(tuned.parameters().map(({ name, tensor: { grad } }) => [name, grad]));
    const keys = [...expected.keys()].filter((key) => key.startsWith('grad.'));
    expect(keys).toHaveLength(grads.size);
    for (const key of keys) {
      const wanted = Float64Array.from(goldenArray(expected, key).data as Float32Array);
      const error = relativeError(values(grads.get(nameOf(key)) as Tensor), wanted);
      expect(error, key).toBeLessThanOrEqual(tolerance.grad_abs_over_max_abs);
    }
    await tuned.savePretrained(plain, { form: 'plain-lora' });
    await saveMerged(tuned, merged);
    const again = await AdapterModel.fromPretrained(await model(), plain);
    expect(again.modules.map(({ r }) => r)).toEqual(again.modules.map(() => 4 + 3));
    expect(logitError(again.model, padded, logits)).toBeLessThanOrEqual(tolerance.logits_abs);
    const whole = await AutoModelForCausalLM.fromPretrained(merged, { dtype: 'f32' });
    expect(logitError(whole, padded, logits)).toBeLessThanOrEqual(tolerance.logits_abs);
  });
});

/** The scores of a module's triplets, from the states of its checkpoint. */
function scoresOf(read: (name: string) => Float32Array, module: string): number[] {
  const score = (key: string): number[] => {
    const deviation = read(`${module}.deviation_${key}`);
    return Array.from(
      read(`${module}.importance_${key}`),
      (value, i) => value * (deviation[i] as number),
    );
  };
  const [a, b, e] = [score('A'), score('B'), score('E')];
  const r = e.length;
  const mean = (list: number[]): number =>
    list.reduce((sum, value) => sum + value, 0) / list.length;
  return e.map((own, k) => {
    const columns = a.length / r;
    const row = a.slice(k * columns, (k + 1) * columns);
    return own + mean(row) + mean(b.filter((_, at) => at % r === k));
  });
}

/** The kept rows of a matrix with a row for each triplet, or its columns. */
function rowsOf(all: ArrayLike<number>, kept: readonly boolean[], columns: boolean): number[] {
  const r = kept.length;
  const width = all.length / r;
  return Array.from(all).filter((_, at) => kept[columns ? at % r : Math.floor(at / width)]);
}

/** Expects two PEFT folders to have equal configurations, up to where the base is, and equal tensors. */
function expectFolder(found: string, wanted: string, tolerance: number): void {
  const config = (of: string) => {
    const json = readJson(join(of, 'adapter_config.json')) as Record<string, unknown>;
    return {
      ...json,
      base_model_name_or_path: '',
      target_modules: [json.target_modules].flat().sort(),
    };
  };
  expect(config(found)).toEqual(config(wanted));
  const [is, was] = [found, wanted].map((of) =>
    goldenArrays(join(of, 'adapter_model.safetensors')),
  ) as [Map<string, GoldenArray>, Map<string, GoldenArray>];
  expect([...is.keys()].sort()).toEqual([...was.keys()].sort());
  for (const [key, { data, shape }] of was) {
    const own = goldenArray(is, key);
    expect(own.shape, key).toEqual(shape);
    if (data.length === 0) continue;
    const error = largestDifference(own.data as Float32Array, data as Float32Array);
    expect(error, key).toBeLessThanOrEqual(tolerance);
  }
}
