/**
 * Products in int8 with every method, every form of the base and the other ways to train: student and teacher begin alike to the bit where both
 * are in int8, a run that was stopped goes on to the same bits, and what cannot be is refused.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import type { AdapterConfigInput } from '../../lib/adapters/create.ts';
import { Batches } from '../../lib/data/batches.ts';
import { arrayRows } from '../../lib/data/rows.ts';
import {
  AutoModelForCausalLM,
  type CausalLM,
  type FromPretrainedOptions,
  saveModel,
} from '../../lib/models/index.ts';
import { memoryStats } from '../../lib/runtime.ts';
import type { ComputeMode } from '../../lib/train/schema.ts';
import { Trainer, type TrainerOptions } from '../../lib/train/trainer.ts';
import type { StepRecord } from '../../lib/train/types.ts';
import { createCalibrated } from '../support/calibrated.ts';
import { collectGarbage } from '../support/collect_garbage.ts';
import { kMethodConfigs } from '../support/method_configs.ts';
import { numbersOf, stateValues } from '../support/run_numbers.ts';
import { tinyTokenizer } from '../support/tiny_tokenizer.ts';

// Products in int8 have the same bits on every processor; a run is refused where they are slow.
vi.mock('../../lib/device.ts', async (load) =>
  (await import('../support/int8_anywhere.ts')).withoutSlowInt8(await load()),
);

const kConfig = {
  ...{ model_type: 'llama', hidden_size: 64, intermediate_size: 96, num_hidden_layers: 2 },
  ...{ num_attention_heads: 4, num_key_value_heads: 2, rms_norm_eps: 1e-5, hidden_act: 'silu' },
  ...{ max_position_embeddings: 128, tie_word_embeddings: true },
  vocab_size: tinyTokenizer().vocabSize,
};
const kBaLora = { consistencyWeight: 0.1, diversityWeight: 0.02, svdWeight: 0.02, svdTopK: 3 };

const rows = arrayRows(
  Array.from({ length: 16 }, (_, i) => ({ prompt: `ab${i % 7}`, response: `c${i % 5}d` })),
);
const folder = mkdtempSync(join(tmpdir(), 'balora-int8-'));
const base = join(folder, 'base');
beforeAll(async () => {
  const model = await AutoModelForCausalLM.fromConfig(kConfig, { seed: 3, dtype: 'bf16' });
  await saveModel(model, base);
  model.dispose();
});
afterAll(async () => {
  await rows.close();
  rmSync(folder, { recursive: true, force: true });
});

interface Way {
  readonly load?: FromPretrainedOptions;
  readonly adapter?: AdapterConfigInput;
  readonly data?: object;
  readonly training?: Partial<TrainerOptions>;
  readonly gradientCheckpointing?: boolean;
  /** Whether the adapter is the second of its model. */
  readonly beside?: boolean;
}

const dataOf = (options: object = {}): Promise<Batches> =>
  Batches.create(rows, tinyTokenizer(), { batchSize: 2, promptTemplate: 'none', ...options });

/** Trains, and stops after a step where that is asked for. */
async function run(compute: ComputeMode, way: Way = {}, stopAfter = 99) {
  const { load, adapter = { method: 'balora', r: 4, loraAlpha: 4 }, beside = false } = way;
  const model: CausalLM = await AutoModelForCausalLM.fromPretrained(base, {
    dtype: 'bf16',
    ...load,
  });
  model.gradientCheckpointing = way.gradientCheckpointing ?? false;
  const data = await dataOf(way.data);
  const tuned = await createCalibrated(model, beside ? { method: 'pissa', r: 3 } : adapter, data);
  if (beside) {
    await tuned.addAdapter('second', adapter);
    tuned.setAdapter('second');
  }
  const stop = new AbortController();
  const records: StepRecord[] = [];
  for await (const event of new Trainer({
    ...{ tuned, data, compute, regularizers: kBaLora, maxSteps: 4, seed: 1 },
    ...{ learningRate: 1e-2, lrSchedulerType: 'constant', signal: stop.signal, ...way.training },
  } as TrainerOptions).run()) {
    if (event.type !== 'step') continue;
    records.push(event.record);
    if (event.record.step === stopAfter) stop.abort();
  }
  await collectGarbage(); // weights of earlier tests, which have copies, too
  const { derivedBytes } = memoryStats();
  const values = stateValues(tuned);
  tuned.dispose();
  model.dispose();
  return { records, values, derivedBytes, numbers: records.map(numbersOf) };
}

describe.each(kMethodConfigs)('the method %s', (method, adapter) => {
  // Orthogonal's B A is zero up to its roundings, which bf16's own instructions let through, without int8 as well.
  const most = method === 'orthogonal' ? 1e-6 : 0;
  it('begins at a divergence of exactly 0 in int8, with the gradient of a step without but for its error', async () => {
    const exact = await run('dtype', { adapter, training: { maxSteps: 2 } });
    for (const mode of ['int8', 'teacher,dx'] as const) {
      const { records, numbers } = await run(mode, { adapter, training: { maxSteps: 2 } });
      const consistency = records[0]?.terms.consistency?.value as number;
      if (mode === 'int8') expect(consistency).toBeLessThanOrEqual(most);
      else expect(consistency).toBeGreaterThan(0);
      expect(numbers).not.toEqual(exact.numbers);
      const [first, second] = records as [StepRecord, StepRecord];
      const [wanted] = exact.records as [StepRecord];
      expect(Math.abs(first.loss - wanted.loss), mode).toBeLessThan(0.01);
      expect(Math.abs(first.gradNorm / wanted.gradNorm - 1), mode).toBeLessThan(0.05);
      expect(Number.isFinite(second.loss) && second.gradNorm > 0, mode).toBe(true);
    }
  });
});

const kWays: Readonly<Record<string, Way>> = {
  f32: { load: { dtype: 'f32' } },
  accumulation: { training: { gradientAccumulationSteps: 2 } },
  packing: { data: { packing: true, maxLength: 24 } },
  dropout: { adapter: { method: 'lora', r: 4, loraDropout: 0.2 } },
  'DoRA with dropout': { adapter: { method: 'dora', r: 4, loraDropout: 0.2 } },
  'LoRA-FA': { adapter: { method: 'lora_fa', r: 4 } },
  'a second adapter': { beside: true },
  'checkpointed layers': { gradientCheckpointing: true },
  'the smallest memory': { training: { memoryBudget: 'min' } },
  'a base in NF4': { load: { baseFormat: 'nf4' } },
  'a cached teacher': { training: { cacheTeacher: true } },
  'a part of the teacher': {
    training: { regularizers: { ...kBaLora, teacherFraction: 0.5 } },
  },
  'the adaptive schedule': {
    training: { regularizers: { ...kBaLora, consistencySchedule: 'adaptive' } },
  },
};

describe.each(Object.entries(kWays))('int8 with %s', (name, way) => {
  it.each(['int8', 'teacher,dx'] as const)('is resumed bit for bit: %s', async (mode) => {
    const whole = await run(mode, way);
    expect(whole.records).toHaveLength(4);
    const output = join(folder, `${name}, ${mode}`);
    const first = await run(mode, { ...way, training: { ...way.training, output } }, 2);
    const resumed = { ...way, training: { ...way.training, output, resume: true } };
    const rest = await run(mode, resumed);
    expect([...first.numbers, ...rest.numbers]).toEqual(whole.numbers);
    expect(rest.values).toEqual(whole.values);
  });
});

it.each([
  ['dtype', 'f32'],
  ['int8', 'bf16'],
  ['dx', 'bf16'],
] as const)('student and teacher share what is packed once: %s on %s', async (mode, dtype) => {
  const way = (regularizers: object): Way => ({
    load: { dtype },
    adapter: { method: 'lora', r: 4 },
    training: { regularizers, maxSteps: 1 } as Partial<TrainerOptions>,
  });
  const { derivedBytes: alone } = await run(mode, way({}));
  const { derivedBytes: both } = await run(mode, way({ consistencyWeight: 0.1 }));
  expect(alone).toBeGreaterThan(0);
  expect(both).toBe(alone);
});

it('is refused in f64 and on an offloaded base, by name', async () => {
  const data = await dataOf();
  for (const [load, reason] of [
    [{ dtype: 'f64' }, 'compute: a model in f64 is computed in f64; leave compute out'],
    [
      { dtype: 'bf16', baseOffload: true },
      'compute: an offloaded base keeps no copies in int8, which each product would have to make again; leave compute out',
    ],
  ] as const) {
    const model = await AutoModelForCausalLM.fromPretrained(base, load);
    const tuned = await AdapterModel.create(model, { r: 2 });
    for (const compute of ['int8', 'dx'] as const) {
      expect(() => new Trainer({ tuned, data, compute, maxSteps: 1 })).toThrow(reason);
    }
    tuned.dispose();
    model.dispose();
  }
});
