// The trainer's graphs on bases in blocks, on a device that can capture every kernel: the emulated one or a GPU. Products that decode as
// they load, panels in scratch and products that backward repeats are captured: a run with graphs equals the run without them bit for bit.
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import type { LoraConfigInput } from '../../lib/adapters/config.ts';
import { setDefaultDevice } from '../../lib/device.ts';
import { AutoModelForCausalLM, type FromPretrainedOptions } from '../../lib/models/auto.ts';
import type { LayerKeep } from '../../lib/models/layers.ts';
import { memoryStats, resetOpTimes, synchronize } from '../../lib/runtime.ts';
import { Trainer } from '../../lib/train/trainer.ts';
import { collectGarbage } from '../support/collect_garbage.ts';
import { kFakePlugin } from '../support/fake_device.ts';
import { fixturePath } from '../support/fixtures.ts';
import { callsOf, stateValues, timeless } from '../support/run_numbers.ts';
import { tinyBatches, tinySource } from '../support/tiny_model.ts';

const kPlugin = process.env.BALORA_CUDA_PLUGIN;
const kRecords = kPlugin !== undefined && kPlugin !== kFakePlugin;
const kModel = fixturePath('architectures/llama-untied-gqa/model');
const kGguf = fixturePath('quant/tiny_llama.gguf');
const kBaLora = { consistencyWeight: 0.1, diversityWeight: 0.02, svdWeight: 0.02, svdTopK: 3 };
const kSteps = 5;

interface Setting {
  readonly path: string;
  readonly options: FromPretrainedOptions;
  readonly config?: LoraConfigInput;
  readonly keep?: LayerKeep;
  /** Default: few, whose products decode as they load; many are multiplied with panels of decoded weights. */
  readonly rows?: number;
}

interface Found {
  readonly records: readonly unknown[];
  readonly state: Record<string, readonly number[]>;
  readonly launches: number;
  /** Live bytes of the device, and of graphs, after each step. */
  readonly live: readonly number[];
  readonly graphs: readonly number[];
  /** Matrices in blocks, those of the adapter included. */
  readonly inBlocks: number;
}

async function train(setting: Setting, captureGraphs: boolean): Promise<Found> {
  const { path, options, config, keep, rows = 8 } = setting;
  const model = await AutoModelForCausalLM.fromPretrained(path, { device: 'cuda', ...options });
  const tuned = await AdapterModel.create(model, { r: 2, loraAlpha: 4, ...config });
  if (keep !== undefined) model.layerKeep = () => keep;
  const own = tuned.modules.flatMap(({ quantized }) => quantized?.weight ?? []);
  const inBlocks = [...model.parameters(), ...own].filter(({ encoding }) => encoding !== null);
  await synchronize();
  resetOpTimes();
  const [live, graphs, records] = [[] as number[], [] as number[], [] as unknown[]];
  const trainer = new Trainer({
    ...{ tuned, captureGraphs, maxSteps: kSteps, learningRate: 0.01 },
    // The batches that have as many supervised rows: one shape.
    data: tinySource(
      tinyBatches({ count: 4, rows, vocabulary: model.vocabSize }).filter((_, b) => b % 3 === 0),
    ),
    regularizers: { ...kBaLora, regularizerSchedule: 'constant' },
    gradientAccumulationSteps: 1,
  });
  for await (const event of trainer.run()) {
    if (event.type !== 'step') continue;
    records.push(timeless(event.record));
    await collectGarbage();
    const { liveBytes, byTag } = memoryStats({ device: 'cuda' });
    live.push(liveBytes);
    graphs.push(byTag.graphs ?? 0);
  }
  const launches = callsOf('graph');
  const state = stateValues(tuned);
  tuned.dispose();
  model.dispose();
  await synchronize();
  return { records, state, launches, live, graphs, inBlocks: inBlocks.length };
}

describe.skipIf(!kRecords)('training by graphs on a base in blocks', () => {
  let before: string;
  beforeAll(() => {
    before = setDefaultDevice('cpu');
  });
  afterAll(() => {
    setDefaultDevice(before);
  });

  const nf4 = { baseFormat: 'nf4' } as const;
  const gguf = { baseFormat: 'gguf' } as const;
  const alpha = { loraAlpha: 64 };
  const kSettings: Record<string, Setting> = {
    'NF4 in f32': { path: kModel, options: nf4 },
    'NF4 in bf16': { path: kModel, options: { ...nf4, dtype: 'bf16' } },
    'NF4 in bf16, many rows': { path: kModel, options: { ...nf4, dtype: 'bf16' }, rows: 132 },
    'NF4 in bf16, thin layers': { path: kModel, options: { ...nf4, dtype: 'bf16' }, keep: 'thin' },
    'NF4 in bf16, checkpointed layers': {
      ...{ path: kModel, options: { ...nf4, dtype: 'bf16' }, keep: 'checkpointed' },
    },
    'GGUF blocks in f32': { path: kGguf, options: gguf, config: alpha },
    'GGUF blocks in bf16': { path: kGguf, options: { ...gguf, dtype: 'bf16' }, config: alpha },
    'GGUF blocks in bf16, many rows': {
      ...{ path: kGguf, options: { ...gguf, dtype: 'bf16' }, config: alpha, rows: 132 },
    },
    'codes of the adapter (QPiSSA)': {
      ...{ path: kModel, options: { dtype: 'bf16' }, config: { initLoraWeights: 'qpissa' } },
    },
  };
  for (const [name, setting] of Object.entries(kSettings)) {
    it(`equals training without them bit for bit: ${name}`, async () => {
      const found = await train(setting, true);
      const expected = await train(setting, false);
      expect(found.inBlocks).toBeGreaterThan(0);
      expect(found.records).toHaveLength(kSteps);
      expect(found.records).toEqual(expected.records);
      expect(found.state).toEqual(expected.state);
      // The pass, the norm of the gradients and the update, in every step but the first.
      expect([found.launches, expected.launches]).toEqual([3 * (kSteps - 1), 0]);
      // The graphs keep the scratch into which weights are decoded, once.
      expect(found.graphs.at(-1)).toBeGreaterThan(0);
      expect(new Set(found.live.slice(2)).size).toBe(1);
    });
  }
});
