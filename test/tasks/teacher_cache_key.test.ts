// The key of outputs in a shared cache of the teacher, each part of it alone: what outputs depend on separates them, and what they do
// not depend on leaves the teacher unasked.
import { cpSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import type { AdapterConfigInput } from '../../lib/adapters/create.ts';
import { Batches, type BatchOptions } from '../../lib/data/batches.ts';
import { arrayRows } from '../../lib/data/rows.ts';
import {
  AutoModelForCausalLM,
  type CausalLM,
  type FromPretrainedOptions,
  saveModel,
} from '../../lib/models/index.ts';
import { saveNf4 } from '../../lib/models/save_nf4.ts';
import { opTimes, resetOpTimes, synchronize } from '../../lib/runtime.ts';
import { Trainer, type TrainerOptions } from '../../lib/train/trainer.ts';
import type { StepRecord } from '../../lib/train/types.ts';
import { createCalibrated } from '../support/calibrated.ts';
import { kMethodConfigs } from '../support/method_configs.ts';
import { numbersOf } from '../support/run_numbers.ts';
import { tinyTokenizer } from '../support/tiny_tokenizer.ts';

// Products in int8 have the same bits on every processor; a run is refused where they are slow.
vi.mock('../../lib/device.ts', async (load) =>
  (await import('../support/int8_anywhere.ts')).withoutSlowInt8(await load()),
);

const folder = mkdtempSync(join(tmpdir(), 'balora-key-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const cache = join(folder, 'teacher.cache');

const kConfig = {
  ...{ model_type: 'llama', hidden_size: 64, intermediate_size: 64, num_hidden_layers: 1 },
  ...{ num_attention_heads: 4, num_key_value_heads: 2, rms_norm_eps: 1e-5, hidden_act: 'silu' },
  ...{ max_position_embeddings: 128, tie_word_embeddings: true },
  vocab_size: tinyTokenizer().vocabSize,
};
const rows = arrayRows(
  Array.from({ length: 12 }, (_, i) => ({ prompt: `ab${i % 7}`, response: `c${i % 5}d` })),
);
afterAll(() => rows.close());

const at = (name: string): string => join(folder, name);
beforeAll(async () => {
  for (const seed of [3, 4]) {
    const model = await AutoModelForCausalLM.fromConfig(kConfig, { seed });
    await saveModel(model, at(`base-${seed}`));
    if (seed === 3) await saveNf4(model, at('nf4'));
    model.dispose();
  }
  cpSync(at('base-3'), at('copy'), { recursive: true });
});

interface Case {
  readonly base?: string;
  readonly load?: FromPretrainedOptions;
  readonly adapter?: AdapterConfigInput;
  readonly data?: Partial<BatchOptions>;
  readonly training?: Partial<TrainerOptions>;
}

const kLora: AdapterConfigInput = { method: 'lora', r: 2 };
const kRegularizers = { consistencyWeight: 0.5, consistencySchedule: 'constant' } as const;

/** Trains for an epoch, and counts the products of the teacher's passes. */
async function run({ base = 'base-3', load = {}, adapter = kLora, data, training }: Case = {}) {
  const model: CausalLM = await AutoModelForCausalLM.fromPretrained(at(base), load);
  const options = { batchSize: 4, promptTemplate: 'none', ...data } as BatchOptions;
  const source = await Batches.create(rows, tinyTokenizer(), options);
  const tuned = await createCalibrated(model, adapter, source);
  const records: StepRecord[] = [];
  try {
    await synchronize();
    resetOpTimes();
    for await (const event of new Trainer({
      ...{ tuned, data: source, regularizers: kRegularizers, numTrainEpochs: 1 },
      ...{ learningRate: 1e-2, lrSchedulerType: 'constant', seed: 1, teacherCache: cache },
      ...training,
    } as TrainerOptions).run()) {
      if (event.type === 'step') records.push(event.record);
    }
    await synchronize();
  } finally {
    tuned.dispose();
    model.dispose();
  }
  const asked = opTimes().filter(({ phase, op }) => phase === 'teacher' && op.startsWith('linear'));
  return {
    records: records.map(numbersOf),
    asked: asked.reduce((sum, { calls }) => sum + calls, 0),
  };
}

describe('a later run', () => {
  beforeAll(async () => {
    expect((await run()).asked).toBeGreaterThan(0);
  });

  it.each<[string, Case]>([
    ['rank', { adapter: { method: 'lora', r: 5, loraAlpha: 20 } }],
    ['dropout', { adapter: { ...kLora, loraDropout: 0.3 } }],
    ['learning rate', { training: { learningRate: 1e-3 } }],
    ['seed', { training: { seed: 9 } }],
    ['optimiser', { training: { optim: 'sgd' } }],
    ['accumulation', { training: { gradientAccumulationSteps: 3 } }],
    ['memory budget', { training: { memoryBudget: 'min' } }],
    ['order of the rows', { data: { shuffle: true, seed: 5 } }],
    ['size of the micro-batches', { data: { batchSize: 3 } }],
    ['packed micro-batches', { data: { packing: true, maxLength: 24 } }],
    [
      'share of the teacher',
      { training: { regularizers: { ...kRegularizers, teacherFraction: 0.5 } } },
    ],
    [
      'weights of the terms',
      { training: { regularizers: { consistencyWeight: 2, svdWeight: 0.1, svdTopK: 2 } } },
    ],
    [
      'schedule',
      { training: { regularizers: { consistencyWeight: 1, consistencySchedule: 'adaptive' } } },
    ],
    ['products of the gradients', { training: { compute: 'dx' } }],
    ['folder of the base', { base: 'copy' }],
  ])('with another %s runs no teacher', async (_, other) => {
    const { asked, records } = await run(other);
    expect(records.length).toBeGreaterThan(0);
    expect(asked).toBe(0);
  });

  // The starts of QPiSSA and LoftQ make codes of the weights, which are a base of their own.
  it.each(kMethodConfigs.filter(([name]) => name !== 'qpissa' && name !== 'loftq'))(
    'by the method %s runs no teacher',
    async (_, adapter) => {
      expect((await run({ adapter })).asked).toBe(0);
    },
  );

  it.each<[string, Case, RegExp]>([
    ['base', { base: 'base-4' }, /its base is "llama.*, not "llama/],
    ['base, in NF4', { base: 'nf4' }, /its base is .*, not /],
    ['base, quantised as it is read', { load: { baseFormat: 'nf4' } }, /its base is .*, not /],
    ['type', { load: { dtype: 'bf16' } }, /dtype is "f32", not "bf16"/],
    ['type of products', { training: { compute: 'teacher' } }, /products is "f32", not "int8"/],
    [
      'temperature',
      { training: { regularizers: { ...kRegularizers, temperature: 3 } } },
      /temperature is 2, not 3/,
    ],
    [
      'teacher, whose codes the start makes',
      { adapter: { method: 'qpissa', r: 2 } },
      /its base is .*, not /,
    ],
  ])('with another %s is refused', async (_, other, reason) => {
    await expect(run(other)).rejects.toThrow(reason);
    await expect(run(other)).rejects.toThrow(/it holds outputs of another teacher/);
  });

  it('asks for the rows that are not there yet, and for those alone', async () => {
    const regularizers = { ...kRegularizers, positions: 'non_padding' } as const;
    const other: Case = { training: { regularizers } };
    expect((await run(other)).asked).toBeGreaterThan(0);
    expect((await run(other)).asked).toBe(0);
    expect((await run()).asked).toBe(0);
  });

  it('on a base that a start has made in blocks is refused with another start', async () => {
    rmSync(cache, { force: true });
    const quantised = { method: 'qpissa', r: 2 } as const;
    await run({ adapter: quantised });
    expect((await run({ adapter: quantised, training: { learningRate: 1e-3 } })).asked).toBe(0);
    for (const adapter of [
      { ...quantised, r: 3 },
      { ...quantised, loraAlpha: 7 },
    ]) {
      await expect(run({ adapter })).rejects.toThrow(
        /its base is "llama.*, quantised .*, not "llama/,
      );
    }
    const int8: Case = { adapter: quantised, training: { compute: 'int8' } };
    await expect(run(int8)).rejects.toThrow(/products is "f32", not "int8"/);
  });
});

describe('a run with the cache is the run without one, bit for bit, whose own cache it has:', () => {
  beforeEach(() => rmSync(cache, { force: true }));

  it.each<[string, Case]>([
    ['f32', {}],
    ['bf16', { load: { dtype: 'bf16' } }],
    ['int8', { training: { compute: 'int8' } }],
    ['a base in NF4', { base: 'nf4' }],
    ['DoRA', { adapter: { method: 'dora', r: 2 } }],
    ['LoRA-FA', { adapter: { method: 'lora_fa', r: 2 } }],
    ['QPiSSA', { adapter: { method: 'qpissa', r: 2 } }],
    [
      'packing and accumulation',
      { data: { packing: true, maxLength: 24 }, training: { gradientAccumulationSteps: 2 } },
    ],
    [
      'a part of the teacher',
      { training: { regularizers: { ...kRegularizers, teacherFraction: 0.5 } } },
    ],
  ])('%s', async (_, c) => {
    const own = await run({
      ...c,
      training: { ...c.training, teacherCache: null, cacheTeacher: true } as never,
    });
    const first = await run(c);
    const second = await run(c);
    expect(first).toEqual(own);
    expect(second.records).toEqual(own.records);
    expect(second.asked).toBe(0);
  });
});
