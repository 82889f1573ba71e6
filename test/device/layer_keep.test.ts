// The tensors that layers keep for backward on a device: runs with layers that compute norms, activations and products again equal those that keep
// all of them, bit for bit, on a base of each form. On the fake device (test/fake_device), the emulated one or a GPU.
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import type { LoraConfigInput } from '../../lib/adapters/config.ts';
import { setDefaultDevice } from '../../lib/device.ts';
import { AutoModelForCausalLM, type FromPretrainedOptions } from '../../lib/models/auto.ts';
import type { LayerKeep } from '../../lib/models/layers.ts';
import { memoryStats, resetOpTimes, synchronize } from '../../lib/runtime.ts';
import { scope } from '../../lib/tensor.ts';
import { Trainer } from '../../lib/train/trainer.ts';
import { collectGarbage } from '../support/collect_garbage.ts';
import { kEmulatedPlugin, kFakePlugin, kNoFake, setVariable } from '../support/fake_device.ts';
import { fixturePath, relativeError } from '../support/fixtures.ts';
import { callsOf, numbersOf, stateValues } from '../support/run_numbers.ts';
import { tinyBatches, tinySource } from '../support/tiny_model.ts';

const kPlugin = process.env.BALORA_CUDA_PLUGIN;
const kReason = kPlugin === undefined ? kNoFake : null;
const kModel = fixturePath('architectures/llama-untied-gqa/model');
const kGguf = fixturePath('quant/tiny_llama.gguf');
const kBaLora = { consistencyWeight: 0.1, diversityWeight: 0.02, svdWeight: 0.02, svdTopK: 3 };
const kSteps = 2;
// The library of a GPU may sum the adapter's part of a product in bf16 in another order than those of two that share an input.
const kIsGpu = kPlugin !== undefined && ![kFakePlugin, kEmulatedPlugin].includes(kPlugin);
const kRounding = 2 ** -7;

interface Found {
  /** Losses and the norm of the gradients, by step. */
  readonly numbers: number[][];
  readonly state: Record<string, number[]>;
  /** Bytes that a forward keeps. */
  readonly kept: number;
  /** Products of linears in the steps. */
  readonly products: number;
  readonly layers: number;
}

async function train(
  keep: LayerKeep,
  [path, options, config]: readonly [string, FromPretrainedOptions, LoraConfigInput],
): Promise<Found> {
  const model = await AutoModelForCausalLM.fromPretrained(path, { device: 'cuda', ...options });
  const tuned = await AdapterModel.create(model, { r: 2, ...config });
  let layers = 0;
  model.layerKeep = (layer) => {
    layers = Math.max(layers, layer + 1);
    return keep;
  };
  const batches = tinyBatches({ count: kSteps, rows: 10, vocabulary: model.vocabSize });
  const [batch] = batches as [(typeof batches)[0]];
  await collectGarbage(); // tensors of earlier tests, which would be collected during this one
  const before = memoryStats({ device: 'cuda' }).liveBytes;
  const hidden = scope(() => model.forward(batch));
  await synchronize();
  const kept = memoryStats({ device: 'cuda' }).liveBytes - before;
  hidden.dispose();
  await synchronize();
  resetOpTimes();
  const numbers: number[][] = [];
  const trainer = new Trainer({
    ...{ tuned, data: tinySource(batches), maxSteps: kSteps, learningRate: 0.05 },
    regularizers: { ...kBaLora, regularizerSchedule: 'constant' },
    gradientAccumulationSteps: 1,
  });
  for await (const event of trainer.run()) {
    if (event.type === 'step') numbers.push(numbersOf(event.record));
  }
  const products = callsOf('linear');
  const state = stateValues(tuned);
  tuned.dispose();
  model.dispose();
  return { numbers, state, kept, products, layers };
}

function expectSame(found: Found, expected: Found, rounding: number): void {
  if (rounding === 0) {
    expect(found.numbers).toEqual(expected.numbers);
    expect(found.state).toEqual(expected.state);
    return;
  }
  for (const [step, numbers] of found.numbers.entries()) {
    expect(relativeError(numbers, expected.numbers[step] as number[])).toBeLessThan(rounding);
  }
  for (const [name, t] of Object.entries(found.state)) {
    expect(relativeError(t, expected.state[name] as number[]), name).toBeLessThan(rounding);
  }
}

describe.skipIf(kReason !== null)('layers on a device', () => {
  let before: string;
  beforeAll(() => {
    if (kPlugin === undefined) setVariable('BALORA_CUDA_PLUGIN', kFakePlugin);
    before = setDefaultDevice('cpu');
  });
  afterAll(() => {
    setDefaultDevice(before);
  });

  it.each([
    ['f32', [kModel, {}, {}]],
    ['bf16', [kModel, { dtype: 'bf16' }, {}]],
    ['dropout before the adapter', [kModel, {}, { loraDropout: 0.2 }]],
    ['NF4 in bf16', [kModel, { dtype: 'bf16', baseFormat: 'nf4' }, {}]],
    ['NF4 in f32', [kModel, { baseFormat: 'nf4' }, {}]],
    ['GGUF blocks in bf16', [kGguf, { dtype: 'bf16', baseFormat: 'gguf' }, { loraAlpha: 64 }]],
    ['codes of the adapter', [kModel, { dtype: 'bf16' }, { initLoraWeights: 'qpissa' }]],
  ] as const)('train alike, however much they compute again: %s', async (_, setting) => {
    const [saved, lean, thin, checkpointed] = [
      await train('saved', setting),
      await train('lean', setting),
      await train('thin', setting),
      await train('checkpointed', setting),
    ];
    expect(saved.numbers).toHaveLength(kSteps);
    expectSame(lean, saved, 0);
    expectSame(thin, saved, kIsGpu ? kRounding : 0);
    const [first, other] = [saved, checkpointed].map(({ numbers }) => numbers[0] as number[]);
    // The gradients of a checkpointed layer's input are rounded before they are added.
    expect(other?.slice(0, -1)).toEqual(first?.slice(0, -1));
    expect((other?.at(-1) as number) / (first?.at(-1) as number)).toBeCloseTo(1, 2);
    expect(lean.kept).toBeLessThan(saved.kept);
    expect(thin.kept).toBeLessThan(lean.kept);
    expect(checkpointed.kept).toBeLessThan(thin.kept);
    // Each layer has one gate, whose factor `up` backward makes once.
    expect(lean.products).toBe(saved.products);
    expect(thin.products - lean.products).toBe(kSteps * saved.layers);
  });
});
