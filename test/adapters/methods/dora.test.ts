import { expect, it } from 'vitest';
import { AdapterModel, type LoraModule } from '../../../lib/adapters/adapter_model.ts';
import type { Batch } from '../../../lib/data/collate.ts';
import { copy_, randn, rowNorm } from '../../../lib/ops/index.ts';
import { noGrad, scope, type Tensor, tensor } from '../../../lib/tensor.ts';
import { values } from '../../support/compare.ts';
import { disturb, expectNear } from '../../support/tiny_adapters.ts';
import { TinyModel, tinyBatches } from '../../support/tiny_model.ts';

const numbers = (value: Tensor): number[] => Array.from(value.dataSync() as Float32Array);

it('initialises the magnitudes as the norms of the rows, and trains them with weight decay', async () => {
  const tuned = await AdapterModel.create(new TinyModel(), { r: 3, useDora: true });
  const { linear, parameters } = tuned.modules[0] as LoraModule;
  const weight = numbers(linear.weight);
  const lengths = Array.from({ length: linear.outFeatures }, (_, row) => {
    const values = weight.slice(row * linear.inFeatures, (row + 1) * linear.inFeatures);
    return Math.hypot(...values);
  });
  expectNear(numbers(parameters.get('lora_magnitude_vector') as Tensor), lengths, 1e-6);
  const trained = tuned.parameters().filter(({ name }) => name.startsWith('layers.0.gate_proj.'));
  expect(trained.map(({ name, decays }) => [name.slice(19), decays])).toEqual([
    ['lora_A', true],
    ['lora_B', true],
    ['lora_magnitude_vector', true],
  ]);
});

/**
 * The outputs of a bf16 model after four steps that move each trained value by 1e-4, far less than half a step
 * of bf16 of a magnitude.
 * @param trains whether the trained tensor of that name is moved
 */
async function outputsAfterSteps(
  config: { useDora?: boolean },
  trains: (name: string) => boolean = () => true,
): Promise<number[]> {
  const model = new TinyModel({ dtype: 'bf16', width: 32 });
  const tuned = await AdapterModel.create(model, { r: 3, ...config });
  const batch = tinyBatches({ count: 1, rows: 16 })[0] as Batch;
  for (let step = 0; step < 4; ++step) {
    scope(() => {
      const y = model.forward(batch);
      y.backward(randn(y.shape, { seed: 5, dtype: 'bf16' }));
    });
    for (const { name, tensor: parameter } of tuned.parameters()) {
      const gradient = numbers(parameter.grad as Tensor);
      parameter.grad = null;
      if (!trains(name)) continue;
      const moved = numbers(parameter).map((v, i) => v - 1e-4 * Math.sign(gradient[i] as number));
      const value = { shape: parameter.shape };
      scope(() => noGrad(() => copy_(parameter, tensor(Float32Array.from(moved), value))));
    }
    tuned.afterStep();
  }
  return scope(() => noGrad(() => Array.from(values(model.forward(batch)))));
}

it('trains the magnitudes of a bf16 base, by steps below its rounding: not the outputs of LoRA', async () => {
  const dora = await outputsAfterSteps({ useDora: true });
  const held = await outputsAfterSteps({ useDora: true }, (name) => !name.includes('magnitude'));
  const lora = await outputsAfterSteps({});
  expect(dora).not.toEqual(held);
  expect(dora).not.toEqual(lora);
});

it('computes the norms once for each value of A and B, always into the same tensor', async () => {
  const tuned = await AdapterModel.create(new TinyModel(), { r: 3, useDora: true });
  const module = tuned.modules[0] as LoraModule;
  const expected = () => scope(() => numbers(rowNorm(module.linear.weight, module.parts)));
  expect(module.updateKey).toBeUndefined();
  const norm = module.derived('norm');
  const [version, key, first] = [norm.version, module.updateKey, numbers(norm)];
  expect(module.derived('norm')).toBe(norm);
  expect(norm.version).toBe(version);
  expect(first).toEqual(expected());
  expect(key).toBeDefined();
  disturb(tuned);
  expect(module.updateKey).toBeUndefined();
  module.renewDerived();
  expect(module.derived('norm')).toBe(norm);
  expect(numbers(norm)).toEqual(expected());
  expect(numbers(norm)).not.toEqual(first);
  expect(module.updateKey).toBeDefined();
  expect(module.updateKey).not.toBe(key);
  tuned.dispose();
  expect(() => norm.dataSync()).toThrow(/disposed/);
});
