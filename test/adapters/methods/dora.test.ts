import { expect, it } from 'vitest';
import { AdapterModel, type LoraModule } from '../../../lib/adapters/adapter_model.ts';
import { ones } from '../../../lib/ops/index.ts';
import type { Tensor } from '../../../lib/tensor.ts';
import { disturb, expectNear } from '../../support/tiny_adapters.ts';
import { TinyModel } from '../../support/tiny_model.ts';

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
    ['lora_A', undefined],
    ['lora_B', undefined],
    ['lora_magnitude_vector', true],
  ]);
});

it('computes the norms once for each value of A and B, and therefore captures no graphs', async () => {
  const tuned = await AdapterModel.create(new TinyModel(), { r: 3, useDora: true });
  expect(tuned.graphObstacle).toBe("useDora keeps its rows' norms from pass to pass");
  const module = tuned.modules[0] as LoraModule;
  let made = 0;
  const norm = () => module.derived('test', () => ones([++made]));
  expect([norm(), norm(), norm()].map(({ size }) => size)).toEqual([1, 1, 1]);
  const old = norm();
  disturb(tuned);
  expect([norm(), norm()].map(({ size }) => size)).toEqual([2, 2]);
  expect(() => old.dataSync()).toThrow(/disposed/);
  const kept = norm();
  tuned.dispose();
  expect(() => kept.dataSync()).toThrow(/disposed/);
  const plain = await AdapterModel.create(new TinyModel(), { r: 3 });
  expect(plain.graphObstacle).toBeNull();
});
