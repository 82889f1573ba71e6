// The memory of a row that is measured on few layers is that of a forward through all of them.
import { expect, it, vi } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import type { LoraConfigInput } from '../../lib/adapters/config.ts';
import { FullModel } from '../../lib/adapters/full_model.ts';
import type { TunedModel } from '../../lib/adapters/tuned_model.ts';
import { finishLoading } from '../../lib/models/auto.ts';
import {
  AutoModelForCausalLM,
  AutoModelForSequenceClassification,
  type LayerKeep,
  type Model,
} from '../../lib/models/index.ts';
import { Layer } from '../../lib/models/layers.ts';
import { RandomWeights } from '../../lib/models/random_weights.ts';
import { t5 } from '../../lib/models/t5.ts';
import { WeightLoader } from '../../lib/models/weights.ts';
import { memoryStats, synchronize, withInt8Products } from '../../lib/runtime.ts';
import { scope } from '../../lib/tensor.ts';
import { measureRows } from '../../lib/train/row_costs.ts';
import { collectGarbage } from '../support/collect_garbage.ts';
import { readJson } from '../support/fixtures.ts';
import { architecture } from '../support/golden_checkpoints.ts';
import { TinyModel } from '../support/tiny_model.ts';

type Json = Readonly<Record<string, unknown>>;
const kRows = 96;
const kLlama = { num_hidden_layers: 9 };
const configOf = (name: string, change: Json): Json => ({
  ...(readJson(`${architecture(name)}/model/config.json`) as Json),
  ...change,
});

const llama = (dtype: 'f32' | 'bf16', change: Json = kLlama) =>
  AutoModelForCausalLM.fromConfig(configOf('llama-untied-gqa', change), { dtype });
const adapted = async (model: Model | Promise<Model>, config: LoraConfigInput = {}) =>
  AdapterModel.create((await model) as never, { r: 4, ...config }) as Promise<TunedModel<Model>>;

const kLinears = ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'];
/** Tuned models, with the number of layers that the passes of one choice have. */
const kModels: Record<string, { make: () => Promise<TunedModel<Model>>; few: number }> = {
  'an adapter of all linears in f32': { make: () => adapted(llama('f32')), few: 1 + 2 },
  'an adapter of all linears in bf16': { make: () => adapted(llama('bf16')), few: 1 + 2 },
  'an adapter of some layers, which are recorded from the first of them on': {
    make: () => {
      const config = { targetModules: kLinears, layersToTransform: [5, 6, 7, 9] };
      return adapted(llama('bf16', { num_hidden_layers: 16 }), config);
    },
    few: 3 + 3 * 4,
  },
  'an adapter of other ranks in some layers': {
    make: () => adapted(llama('f32'), { rankPattern: { 'layers.[0-4].mlp.up_proj': 7 } }),
    few: 2 + 2 * 3,
  },
  'full fine-tuning': {
    make: async () => {
      const options = { dtype: 'bf16', trainable: true } as const;
      const config = configOf('llama-untied-gqa', kLlama);
      return new FullModel(await AutoModelForCausalLM.fromConfig(config, options)) as never;
    },
    few: 1 + 2,
  },
  'windows of attention in some layers': {
    make: () => {
      const change = { num_hidden_layers: 7, layer_types: undefined };
      return adapted(AutoModelForCausalLM.fromConfig(configOf('gemma3-text', change)));
    },
    few: 1 + 2,
  },
  'an encoder': {
    make: () => {
      const config = configOf('bert', { num_hidden_layers: 5 });
      return adapted(AutoModelForSequenceClassification.fromConfig(config));
    },
    few: 1 + 2,
  },
  'an encoder-decoder, whose first layers have tables of their own': {
    make: () => adapted(deepT5()),
    few: 4 + 2 * 5,
  },
  'fewer layers than it takes to measure few': {
    make: () => adapted(llama('bf16', { num_hidden_layers: 3 })),
    few: 3,
  },
  'a model without layers': { make: async () => new FullModel(new TinyModel()) as never, few: 0 },
};

/** The bytes of a row that a forward through all layers keeps. */
async function keptBy(model: Model, keep: LayerKeep, savedActivations: boolean): Promise<number> {
  model.layerKeep = () => keep;
  const each: number[] = [];
  for (const batch of model.probeBatches(kRows)) {
    await collectGarbage(); // tensors of earlier tests, which would be collected during this one
    const before = memoryStats().liveBytes;
    const hidden = withInt8Products({ savedActivations }, () => scope(() => model.forward(batch)));
    await synchronize();
    each.push((memoryStats().liveBytes - before) / kRows);
    hidden.dispose();
    await synchronize();
  }
  return Math.max(...each);
}

/** An encoder-decoder with random weights. */
async function deepT5(): Promise<Model> {
  const json = configOf('t5-v1.1', { num_layers: 9, num_decoder_layers: 8 });
  const { make, tied } = t5.configure({ ...json }, { path: 'the configuration' });
  const origin = { nameOrPath: 'random weights', folder: '', dtype: 'f32' } as const;
  const read = { dtype: 'f32', checkFinite: false, share: false } as const;
  const build = (weights: WeightLoader) => make({ weights, origin, tied });
  const shapes = WeightLoader.plan(read, build);
  const source = new RandomWeights(shapes, { seed: 1, deviation: 0.1 });
  const model = WeightLoader.build(source, read, build);
  await finishLoading(model, source, { trainable: false });
  return model;
}

it.each(Object.entries(kModels))('%s', async (_, { make, few }) => {
  const tuned = await make();
  const { model } = tuned;
  const layers = [...model.namedModules()].filter(([, module]) => module instanceof Layer);
  for (const savesInt8 of [false, true]) {
    const asked = vi.spyOn(model, 'keepOf');
    const { layerCount, costs } = await measureRows(tuned, { savesInt8, largest: 1 });
    expect(layerCount).toBe(Math.max(1, layers.length));
    // All layers once, and few of them for each choice.
    const choices = savesInt8 ? 4 : 3;
    const batches = model.probeBatches(kRows).length;
    expect(asked).toHaveBeenCalledTimes(batches * (layers.length + choices * few));
    asked.mockRestore();
    expect(layers.some(([, layer]) => (layer as Layer<unknown>).isSkipped)).toBe(false);
    for (const keep of ['saved', 'lean', 'thin', 'checkpointed'] as const) {
      expect(costs[keep], keep).toBeCloseTo(await keptBy(model, keep, savesInt8), 6);
    }
    expect(costs.exact).toBeCloseTo(await keptBy(model, 'saved', false), 6);
  }
  tuned.dispose();
  model.dispose();
});
