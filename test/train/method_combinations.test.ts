/**
 * Every method with BA-LoRA's regularizers, in both types of a base, with accumulation, packing, a memory plan and a base in blocks: two steps
 * train, from outputs that are the base's.
 */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import type { AdapterConfigInput } from '../../lib/adapters/create.ts';
import { FullModel } from '../../lib/adapters/full_model.ts';
import { METHOD_NAMES } from '../../lib/adapters/methods/registry.ts';
import type { TunedModel } from '../../lib/adapters/tuned_model.ts';
import { Batches } from '../../lib/data/batches.ts';
import { arrayRows } from '../../lib/data/rows.ts';
import { AutoModelForCausalLM, type CausalLM } from '../../lib/models/index.ts';
import { regularizersOf } from '../../lib/train/methods.ts';
import { Trainer, type TrainerOptions } from '../../lib/train/trainer.ts';
import type { StepRecord } from '../../lib/train/types.ts';
import { createCalibrated } from '../support/calibrated.ts';
import { kMethodConfigs } from '../support/method_configs.ts';
import { tinyTokenizer } from '../support/tiny_tokenizer.ts';

const kConfig = {
  ...{ model_type: 'llama', hidden_size: 32, intermediate_size: 48, num_hidden_layers: 1 },
  ...{ num_attention_heads: 4, num_key_value_heads: 2, rms_norm_eps: 1e-5, hidden_act: 'silu' },
  ...{ max_position_embeddings: 128, tie_word_embeddings: true },
};
const kConfigs = new Map<string, AdapterConfigInput>(kMethodConfigs);
const kRegularizers = regularizersOf('balora', { task: 'causal-lm', given: {} });

interface Way {
  readonly data?: object;
  readonly training?: Partial<TrainerOptions>;
  readonly baseFormat?: 'nf4';
}

const kWays: Readonly<Record<string, Way>> = {
  plain: {},
  accumulation: { training: { gradientAccumulationSteps: 2 } },
  packing: { data: { packing: true, maxLength: 24 } },
  'memory budget': { training: { memoryBudget: 'min' } },
  'a base in NF4': { baseFormat: 'nf4' },
};

/** Methods for no base in blocks: they train all weights, or make codes of the weights themselves. */
const kNotInBlocks: readonly string[] = ['full', 'qpissa', 'loftq'];

let rows: ReturnType<typeof arrayRows>;
beforeAll(() => {
  rows = arrayRows(
    Array.from({ length: 24 }, (_, i) => ({ prompt: `ab${i % 7}`, response: `c${i % 5}d` })),
  );
});
afterAll(() => rows.close());

const dataOf = (options: object = {}) =>
  Batches.create(rows, tinyTokenizer(), { batchSize: 2, promptTemplate: 'none', ...options });

const modelOf = (dtype: 'f32' | 'bf16', { baseFormat }: Way = {}): Promise<CausalLM> =>
  AutoModelForCausalLM.fromConfig(
    { ...kConfig, vocab_size: tinyTokenizer().vocabSize },
    { seed: 3, dtype, ...(baseFormat && { baseFormat }) },
  );

async function tunedBy(method: string, dtype: 'f32' | 'bf16', way: Way) {
  const model = await modelOf(dtype, way);
  if (method === 'full') return new FullModel(model, { teacher: await modelOf(dtype) });
  return createCalibrated(model, kConfigs.get(method) as AdapterConfigInput, await dataOf());
}

const valuesOf = (tuned: TunedModel) =>
  tuned.parameters().map(({ tensor }) => Array.from(tensor.dataSync() as Float32Array));

describe.each(METHOD_NAMES)('%s', (method) => {
  describe.each(['f32', 'bf16'] as const)('%s', (dtype) => {
    const ways = Object.entries(kWays).filter(
      ([, { baseFormat }]) => baseFormat === undefined || !kNotInBlocks.includes(method),
    );
    it.each(ways)('with regularizers, %s', async (_, way) => {
      const { data, training } = way;
      const tuned = await tunedBy(method, dtype, way);
      const before = valuesOf(tuned);
      const records: StepRecord[] = [];
      const trainer = new Trainer({
        ...{ tuned, data: await dataOf(data), regularizers: kRegularizers, maxSteps: 2 },
        ...{
          learningRate: 1e-2,
          lrSchedulerType: 'constant',
          warmupSteps: 0,
          seed: 1,
          ...training,
        },
      } as TrainerOptions);
      for await (const event of trainer.run()) {
        if (event.type === 'step') records.push(event.record);
      }
      expect(records).toHaveLength(2);
      const [first] = records as [StepRecord];
      // The model begins as its base, but for the rounding of a start whose parts cancel.
      expect(Math.abs(first.terms.consistency?.value as number)).toBeLessThan(1e-6);
      for (const { loss, gradNorm } of records) {
        expect(Number.isFinite(loss)).toBe(true);
        expect(gradNorm).toBeGreaterThan(0);
      }
      expect(valuesOf(tuned)).not.toEqual(before);
      tuned.dispose();
      (tuned as AdapterModel<CausalLM>).model.dispose();
    });
  });
});
