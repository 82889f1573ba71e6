/**
 * PEFT adapters on SmolLM2-135M in f32: logits, losses with every option, gradients, and the LoRA that a
 * PiSSA adapter is saved as.
 */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import type { Positions } from '../../lib/data/select_rows.ts';
import { evaluate } from '../../lib/eval/evaluate.ts';
import { AutoModelForCausalLM, type CausalLM } from '../../lib/models/index.ts';
import { gather, indexSelect, linear, logSumExp } from '../../lib/ops/index.ts';
import { noGrad, scope, type Tensor, tensor } from '../../lib/tensor.ts';
import type { RegularizerOptions } from '../../lib/train/regularizers.ts';

import { accumulator } from '../support/accumulate.ts';
import { casesOfLevel } from '../support/cpu_levels.ts';
import { goldenArray, goldenArrays } from '../support/golden.ts';
import { goldenBatch, type PaddedBatch, windowOf } from '../support/golden_batch.ts';
import { describeShared, sharedPath } from '../support/shared.ts';

interface Case {
  options: {
    l1: number;
    l2: number;
    l3: number;
    T: number;
    K: number;
    k: number;
    svd: 'frobenius' | 'nuclear';
    positions: Positions;
  };
  rows: number;
  task: number;
  cr: number;
  dr: number;
  svdr: number;
  total: number;
  grad_norm: number;
  module_grad_norm: Record<string, number>;
}

const kNames = { ids: 'ids', mask: 'attention_mask', labels: 'targets' };
const kTop = 20;

describeShared('adapters on SmolLM2', () => {
  const path = (name: string): string => sharedPath(`golden/smollm2/${name}`);
  let model: CausalLM;
  beforeAll(async () => {
    model = await AutoModelForCausalLM.fromPretrained(
      sharedPath('models/smollm2-135m-instruct-gguf'),
      { dtype: 'f32' },
    );
  });
  afterAll(() => model.dispose());

  it.each(casesOfLevel(['dora_r2', 'lora_r4', 'rslora_r2', 'pattern', 'pissa_to_lora/converted']))(
    '%s: logits',
    async (name) => {
      const tuned = await AdapterModel.fromPretrained(model, path(name));
      const arrays = goldenArrays(path(`${name.replace('/converted', '')}/expected.safetensors`));
      const padded = goldenBatch(arrays, kNames);
      const { top, total } = topLogits(
        model,
        padded,
        goldenArray(arrays, 'top_ids').data as Int32Array,
      );
      const expectedTop = goldenArray(arrays, 'top_logits').data as Float32Array;
      const expectedTotal = goldenArray(arrays, 'logsumexp').data as Float32Array;
      const tolerance = name.startsWith('pissa') ? 1e-3 : 5e-4;
      padded.real.forEach((row, i) => {
        expect(Math.abs((total[i] as number) - (expectedTotal[row] as number))).toBeLessThan(
          tolerance,
        );
        for (let j = 0; j < kTop; j++) {
          const error = (top[i * kTop + j] as number) - (expectedTop[row * kTop + j] as number);
          expect(Math.abs(error), `row ${row}, place ${j}`).toBeLessThan(tolerance);
        }
      });
      tuned.dispose();
    },
  );

  it('a PiSSA adapter is saved as the same LoRA that PEFT converts it to, tensor by tensor', async () => {
    const tuned = await AdapterModel.create(model, {
      ...{ r: 4, loraAlpha: 4, initLoraWeights: 'pissa_niter_0' }, // the values are replaced below
      ...{ targetModules: ['q_proj', 'v_proj'], layersToTransform: [0, 1, 2, 3] },
    });
    const read = (name: string) =>
      goldenArrays(path(`pissa_to_lora/${name}/adapter_model.safetensors`));
    const values: Record<string, Tensor> = {};
    for (const [golden, own] of [
      ['trained', 'lora'],
      ['initial', 'initial'],
    ] as const) {
      for (const [key, { data, shape }] of read(golden)) {
        const [, module, half] = /^base_model\.model\.(.+)\.lora_([AB])\.weight$/.exec(key) ?? [];
        values[`${module}.${own}_${half}`] = tensor(data as Float32Array, { shape });
      }
    }
    tuned.restore(values, 'golden');
    const folder = mkdtempSync(join(tmpdir(), 'balora-pissa-'));
    try {
      await tuned.savePretrained(folder);
      const found = goldenArrays(join(folder, 'adapter_model.safetensors'));
      const expected = read('converted');
      expect([...found.keys()].sort()).toEqual([...expected.keys()].sort());
      for (const [key, { shape, data }] of expected) {
        expect(found.get(key)?.shape, key).toEqual(shape);
        // The conversion only copies and negates values, so that every bit is equal.
        expect(found.get(key)?.data, key).toEqual(data);
      }
      const config = (at: string) =>
        JSON.parse(readFileSync(join(at, 'adapter_config.json'), 'utf8')) as object;
      const { r, lora_alpha, layers_to_transform } = config(
        path('pissa_to_lora/converted'),
      ) as Record<string, unknown>;
      expect(config(folder)).toMatchObject({ r, lora_alpha, layers_to_transform });
    } finally {
      rmSync(folder, { recursive: true });
      tuned.dispose();
    }
  });

  const facts = JSON.parse(readFileSync(path('lora_r4/expected.json'), 'utf8')) as {
    cases: { full: Case } & Record<string, Case>;
  };
  const { full, ...others } = facts.cases;
  it.each(casesOfLevel(Object.entries({ full, ...others })))(
    'lora_r4: losses and gradients of %s',
    async (name, one) => {
      const tuned = await AdapterModel.fromPretrained(model, path('lora_r4'));
      const arrays = goldenArrays(path('lora_r4/expected.safetensors'));
      const { batch } = goldenBatch(arrays, kNames);
      const options = regularizersOf(one);
      const window = windowOf(batch, options.positions);
      const objective = accumulator(tuned, options);
      const terms = await objective.accumulate(window);
      expect(window.totals.regularized).toBe(one.rows);
      const near = (found: number | null, expected: number, what: string): void => {
        if (found === null) return;
        expect(Math.abs(found - expected), what).toBeLessThanOrEqual(5e-5 * Math.abs(expected));
      };
      near(terms.taskLoss, one.task, 'task');
      near(terms.consistency, one.cr, 'cr');
      near(terms.diversity, one.dr, 'dr');
      near(terms.svd, one.svdr, 'svdr');
      near(terms.loss, one.total, 'total');
      compareGradients(tuned, name, one, arrays);
      tuned.dispose();
    },
  );
});

/**
 * Error in bf16, which has 8 significant bits: an activation has a rounding error of up to 2^-9, and after 30 blocks of residual
 * sums the logits have one of about 0.05. That changes cross-entropy, entropy and the SVD ratio by thousandths, and adds half the
 * variance of the logits' noise, times T^2, to the KL between student and teacher. Measured on one CPU: task 3e-3, cr 4e-3
 * (absolute), dr 3e-3, svdr 5e-4, norm of the gradient 7e-3, gradient 5e-2 (relative). The tolerances are three times that.
 */
describeShared('adapters on SmolLM2 in bf16', () => {
  it('stay near the values in f32, with a KL of exactly 0 at the start', async () => {
    const path = (name: string): string => sharedPath(`golden/smollm2/${name}`);
    const model = await AutoModelForCausalLM.fromPretrained(
      sharedPath('models/smollm2-135m-instruct-gguf'),
      { dtype: 'bf16' },
    );
    const facts = JSON.parse(readFileSync(path('lora_r4/expected.json'), 'utf8')) as {
      cases: { full: Case };
    };
    const expected = facts.cases.full;
    const arrays = goldenArrays(path('lora_r4/expected.safetensors'));
    const { batch } = goldenBatch(arrays, kNames);
    const window = windowOf(batch);
    const tuned = await AdapterModel.fromPretrained(model, path('lora_r4'));
    const objective = accumulator(tuned, regularizersOf(expected));
    const terms = await objective.accumulate(window);
    const { taskLoss, consistency, diversity, svd } = terms;
    const within = (found: number | null, wanted: number, band: number, what: string): void => {
      expect(Math.abs((found as number) - wanted), what).toBeLessThanOrEqual(band);
    };
    within(taskLoss, expected.task, 1e-2 * expected.task, 'task');
    within(consistency, expected.cr, 1.2e-2, 'cr');
    within(diversity, expected.dr, 1e-2 * Math.abs(expected.dr), 'dr');
    within(svd, expected.svdr, 1.5e-3 * Math.abs(expected.svdr), 'svdr');
    let [difference, golden, squares] = [0, 0, 0];
    for (const { name, tensor: parameter } of tuned.parameters()) {
      const key = `grad.full.base_model.model.${name}.weight`;
      const wanted = goldenArray(arrays, key).data as Float32Array;
      const grad = (parameter.grad as Tensor).dataSync() as Float32Array;
      grad.forEach((value, i) => {
        difference += (value - (wanted[i] as number)) ** 2;
        golden += (wanted[i] as number) ** 2;
        squares += value ** 2;
      });
    }
    within(Math.sqrt(squares), expected.grad_norm, 2e-2 * expected.grad_norm, 'grad_norm');
    expect(Math.sqrt(difference / golden), 'gradient').toBeLessThan(0.15);
    objective.dispose();
    tuned.dispose();

    const targetModules = '.*layers\\.(0|29)\\..*';
    const fresh = await AdapterModel.create(model, {
      r: 8,
      initLoraWeights: 'pissa',
      targetModules,
    });
    expect((await evaluate(fresh, [batch])).kl).toBe(0);
    fresh.dispose();
    model.dispose();
  });
});

function regularizersOf({ options }: Case): RegularizerOptions {
  return {
    consistencyWeight: options.l1,
    diversityWeight: options.l2,
    svdWeight: options.l3,
    temperature: options.T,
    entropyTopK: options.K,
    svdTopK: options.k,
    svdNorm: options.svd,
    positions: options.positions,
    consistencySchedule: 'constant',
    regularizerSchedule: 'constant',
  };
}

function compareGradients(
  tuned: AdapterModel,
  name: string,
  one: Case,
  arrays: ReturnType<typeof goldenArrays>,
): void {
  let squares = 0;
  for (const { name: key, tensor: parameter } of tuned.parameters()) {
    const grad = parameter.grad?.dataSync() as Float32Array;
    const peft = `base_model.model.${key}.weight`;
    const norm = Math.hypot(...grad);
    squares += norm * norm;
    const expected = one.module_grad_norm?.[peft];
    if (expected !== undefined) {
      expect(Math.abs(norm - expected), peft).toBeLessThanOrEqual(5e-3 * expected);
    }
    const golden = arrays.get(`grad.${name}.${peft}`)?.data as Float32Array | undefined;
    if (golden === undefined) continue;
    const error = Math.hypot(...grad.map((value, i) => value - (golden[i] as number)));
    expect(error, peft).toBeLessThanOrEqual(5e-3 * Math.hypot(...golden));
  }
  const total = Math.sqrt(squares);
  expect(Math.abs(total - one.grad_norm)).toBeLessThanOrEqual(1e-3 * one.grad_norm);
}

/** The logits of the rows that are no padding at the golden top ids, and the log-sum-exp of all logits. */
function topLogits(
  model: CausalLM,
  { batch, real }: PaddedBatch,
  ids: Int32Array,
): { top: Float32Array; total: Float32Array } {
  const wanted = Int32Array.from({ length: real.length * kTop }, (_, at) => {
    const row = real[Math.floor(at / kTop)] as number;
    return ids[row * kTop + (at % kTop)] as number;
  });
  return scope(() =>
    noGrad(() => {
      const hidden = indexSelect(model.forward(batch), tensor(real));
      const logits = linear(hidden, model.head.weight);
      const index = tensor(wanted, { shape: [real.length, kTop] });
      return {
        top: gather(logits, index).dataSync() as Float32Array,
        total: logSumExp(logits, { axis: 1 }).dataSync() as Float32Array,
      };
    }),
  );
}
