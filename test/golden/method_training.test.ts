/**
 * Trainings of methods with a rule of their own against references in float64, made with PEFT and after the authors' code: losses before
 * each step and after the last, and the trained values.
 */
import { readFileSync } from 'node:fs';
import { expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import type { AdapterMethodName } from '../../lib/adapters/make_adapter.ts';
import { AutoModelForCausalLM } from '../../lib/models/index.ts';
import { Trainer, type TrainerOptions } from '../../lib/train/trainer.ts';
import type { StepRecord } from '../../lib/train/types.ts';
import { accumulator } from '../support/accumulate.ts';
import { fixturePath } from '../support/fixtures.ts';
import { goldenArray, goldenArrays } from '../support/golden.ts';
import { goldenBatch, windowOf } from '../support/golden_batch.ts';
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

const { batch } = goldenBatch(goldenArrays(fixturePath(`${kModel}/inputs.safetensors`)), {
  ids: 'input_ids',
  mask: 'attention_mask',
  labels: 'labels',
});

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

describeShared('optimisers of methods', [kMethods], () => {
  const path = (name: string): string => sharedPath(`${kMethods}/${name}`);
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
