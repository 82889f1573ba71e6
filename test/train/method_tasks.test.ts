/**
 * Every method on classifiers and encoder-decoders, with BA-LoRA's regularizers of the task: two steps train from outputs that are the
 * base's, also with checkpointed layers and with a memory plan. method_combinations.test.ts does this for language models.
 */
import { describe, expect, it } from 'vitest';
import { FullModel } from '../../lib/adapters/full_model.ts';
import type { TunedModel } from '../../lib/adapters/tuned_model.ts';
import type { BatchSource } from '../../lib/data/batch_source.ts';
import { AutoModelForSeq2SeqLM, type Model } from '../../lib/models/index.ts';
import { regularizersOf } from '../../lib/train/methods.ts';
import { Trainer, type TrainerOptions } from '../../lib/train/trainer.ts';
import type { StepRecord } from '../../lib/train/types.ts';
import { createCalibrated } from '../support/calibrated.ts';
import { kMethodConfigs } from '../support/method_configs.ts';
import { tinyClassifier, tinyLabelled } from '../support/tiny_classifier.ts';
import { kTinyT5, tinySeq2SeqData } from '../support/tiny_seq2seq.ts';

interface Side {
  readonly model: (trainable: boolean) => Promise<Model>;
  readonly data: () => Promise<unknown>;
}

const kTasks = {
  'sequence-classification': {
    model: (trainable) => tinyClassifier({ numLabels: 3, trainable, seed: 1 }),
    data: () => tinyLabelled(16, { batchSize: 8 }),
  },
  'seq2seq-lm': {
    model: (trainable) => AutoModelForSeq2SeqLM.fromPretrained(kTinyT5, { trainable }),
    data: () => tinySeq2SeqData(16, { batchSize: 4, shuffle: false }),
  },
} as const satisfies Record<string, Side>;

const kWays: Readonly<
  Record<string, { training?: Partial<TrainerOptions>; gradientCheckpointing?: boolean }>
> = {
  'all kept': {},
  'checkpointed layers': { gradientCheckpointing: true },
  'the least memory': { training: { memoryBudget: 'min' } },
};

const valuesOf = (tuned: TunedModel<Model>) =>
  tuned.parameters().map(({ tensor }) => Array.from(tensor.dataSync() as Float32Array));

describe.each(Object.keys(kTasks) as (keyof typeof kTasks)[])('%s', (task) => {
  const { model: load, data: dataOf }: Side = kTasks[task];
  const regularizers = regularizersOf('balora', { task, given: {} });

  async function train(tuned: TunedModel<Model>, training: Partial<TrainerOptions> = {}) {
    const records: StepRecord[] = [];
    const trainer = new Trainer({
      ...{ tuned, data: await dataOf(), regularizers, maxSteps: 2, learningRate: 1e-2 },
      ...{ lrSchedulerType: 'constant', warmupSteps: 0, seed: 1, ...training },
    } as never as TrainerOptions);
    for await (const event of trainer.run()) {
      if (event.type === 'step') records.push(event.record);
    }
    return records;
  }

  describe.each([...kMethodConfigs.map(([name]) => name), 'full'])('%s', (method) => {
    const config = new Map(kMethodConfigs).get(method as never);
    const tunedModel = async (): Promise<TunedModel<Model>> => {
      const model = await load(config === undefined);
      if (config === undefined) return new FullModel(model, { teacher: await load(false) });
      return createCalibrated(model, config, (await dataOf()) as BatchSource);
    };

    it('trains from the base, and gives the same whatever is kept for backward', async () => {
      const found: { records: StepRecord[]; values: number[][] }[] = [];
      for (const { training, gradientCheckpointing = false } of Object.values(kWays)) {
        const tuned = await tunedModel();
        tuned.model.gradientCheckpointing = gradientCheckpointing;
        const before = valuesOf(tuned);
        const records = await train(tuned, training);
        expect(records).toHaveLength(2);
        // The model begins as its base, but for the rounding of a start whose parts cancel.
        expect(Math.abs(records[0]?.terms.consistency?.value as number)).toBeLessThan(1e-6);
        for (const { loss, gradNorm } of records) {
          expect(Number.isFinite(loss)).toBe(true);
          expect(gradNorm).toBeGreaterThan(0);
        }
        const values = valuesOf(tuned);
        expect(values).not.toEqual(before);
        found.push({ records, values });
        tuned.dispose();
        tuned.model.dispose();
      }
      const [first, ...others] = found as [(typeof found)[0], ...typeof found];
      for (const { records } of others) {
        expect(records[0]?.loss).toBe(first.records[0]?.loss);
        for (const [i, { loss, gradNorm }] of records.entries()) {
          const expected = first.records[i] as StepRecord;
          expect(loss).toBeCloseTo(expected.loss, 4);
          expect(Math.abs(gradNorm / expected.gradNorm - 1)).toBeLessThan(1e-4);
        }
      }
    });
  });
});
