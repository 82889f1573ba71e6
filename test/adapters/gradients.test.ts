/**
 * The gradients of a whole model's loss in f64 with respect to every tensor that an adapter trains, against central differences.
 */
import { expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { type LoraConfigInput, loraConfig } from '../../lib/adapters/config.ts';
import { METHOD_OPTION_NAMES } from '../../lib/adapters/methods/registry.ts';
import { ArgumentError } from '../../lib/errors.ts';
import { AutoModelForCausalLM } from '../../lib/models/index.ts';
import type { LinearUpdate } from '../../lib/nn/adapter_hook.ts';
import { copy_, crossEntropy, div, randn, rowNorm } from '../../lib/ops/index.ts';
import { noGrad, scope, type Tensor, tensor } from '../../lib/tensor.ts';
import { fixturePath } from '../support/fixtures.ts';
import { goldenArrays } from '../support/golden.ts';
import { goldenBatch } from '../support/golden_batch.ts';
import { testRandom } from '../support/gradcheck.ts';
import { kOwnForms } from '../support/own_forms.ts';

const kFamily = 'architectures/llama-untied-gqa';
const { batch } = goldenBatch(goldenArrays(fixturePath(`${kFamily}/inputs.safetensors`)), {
  ids: 'input_ids',
  mask: 'attention_mask',
  labels: 'labels',
});

const kVariants: [string, LoraConfigInput][] = [
  ['lora', {}],
  ...METHOD_OPTION_NAMES.flatMap((name): [string, LoraConfigInput][] =>
    isSwitchOfPairs({ [name]: true }) ? [[name, { [name]: true }]] : [],
  ),
  ['dora on pissa', { useDora: true, initLoraWeights: 'pissa' }],
  ['dropout', { loraDropout: 0.3 }],
  ['dora with dropout', { useDora: true, loraDropout: 0.3 }],
  ['saved modules', { modulesToSave: ['norm', 'o_proj'] }],
  ...kOwnForms,
];

function isSwitchOfPairs(config: Readonly<Record<string, boolean>>): boolean {
  try {
    loraConfig(config);
    return true;
  } catch (error) {
    expect(error).toBeInstanceOf(ArgumentError); // it belongs to a method with tensors of its own
    return false;
  }
}

it.each(kVariants)('%s', async (_, config) => {
  const path = fixturePath(`${kFamily}/model`);
  const model = await AutoModelForCausalLM.fromPretrained(path, { dtype: 'f64' });
  const pairs = config.peftType === undefined ? { r: 3, loraAlpha: 6 } : {};
  const isDash = config.peftType === 'LORA_DASH';
  const tuned = await AdapterModel.create(model, {
    ...pairs,
    ...config,
    ...(isDash && { dashWarmup: 0 }),
  });
  let seed = 1;
  for (const { tensor: parameter } of tuned.parameters()) {
    const move = randn(parameter.shape, { seed: seed++, deviation: 0.1, dtype: 'f64' });
    scope(() => noGrad(() => copy_(parameter, added(parameter, move))));
  }
  await tuned.methodTraining?.beforeStep({ step: 3, totalSteps: 8, microBatches: 1 });
  holdNorms(tuned);
  tuned.trainingPass({ step: 3, microBatch: 1 });
  const loss = (): Tensor =>
    crossEntropy(model.logits(model.forward(batch)), tensor(batch.targets));
  scope(() => loss().backward());
  const value = (): number => scope(() => noGrad(() => loss().itemSync()));

  const random = testRandom(5);
  const byKind = new Map<string, number>();
  for (const { name, tensor: parameter } of tuned.parameters()) {
    // Three tensors of each kind: A, B, and those that a variant adds.
    const kind = name.slice(name.lastIndexOf('_proj') + 1);
    byKind.set(kind, (byKind.get(kind) ?? 0) + 1);
    if ((byKind.get(kind) as number) > 3) continue;
    const gradient = parameter.grad?.dataSync() as Float64Array;
    expect(
      gradient.some((g) => g !== 0),
      name,
    ).toBe(true);
    const scale = gradient.reduce((most, g) => Math.max(most, Math.abs(g)), 0);
    const start = Float64Array.from(parameter.dataSync() as Float64Array);
    const at = Math.floor(((random() + 1) / 2) * start.length) % start.length;
    const moved = (by: number): number => {
      const values = start.slice();
      values[at] = (values[at] as number) + by;
      scope(() => noGrad(() => copy_(parameter, tensor(values, { shape: parameter.shape }))));
      return value();
    };
    const difference = (moved(1e-5) - moved(-1e-5)) / 2e-5;
    moved(0);
    expect(Math.abs(difference - (gradient[at] as number)), `${name}[${at}]`).toBeLessThan(
      1e-6 * Math.max(scale, 1e-2),
    );
  }
});

/** Holds the norms constant, as DoRA's gradient does, so that the differences do, too. */
function holdNorms(tuned: AdapterModel): void {
  for (const module of tuned.modules) {
    const { linear } = module;
    const magnitude = module.parameters.get('lora_magnitude_vector');
    if (magnitude === undefined) continue;
    const norm = noGrad(() => rowNorm(linear.weight, module.parts));
    linear.adapter = {
      update: () => ({ ...(module.update() as LinearUpdate), outputScale: div(magnitude, norm) }),
    };
  }
}

const added = (a: Tensor, b: Tensor): Tensor => {
  const [x, y] = [a.dataSync() as Float64Array, b.dataSync() as Float64Array];
  return tensor(
    x.map((v, i) => v + (y[i] as number)),
    { shape: a.shape },
  );
};
