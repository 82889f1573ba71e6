import { expect, it } from 'vitest';
import { AdapterModel } from '../../../lib/adapters/adapter_model.ts';
import { ArgumentError } from '../../../lib/errors.ts';
import { matmul, singularValues } from '../../../lib/ops/index.ts';
import { scope, type Tensor } from '../../../lib/tensor.ts';
import { TinyModel } from '../../support/tiny_model.ts';

const numbers = (value: Tensor): number[] => Array.from(value.dataSync() as Float32Array);

const create = (config: object, model = new TinyModel({ width: 32, layers: 40 })) =>
  AdapterModel.create(model, { method: 'orthogonal', ...config });

it('draws A and B of rank r/2 with the deviation sqrt(1/200), whose product is 0', async () => {
  const tuned = await create({ r: 8 });
  const all: number[] = [];
  for (const { pair } of tuned.modules) {
    const product = scope(() => numbers(matmul(pair.b, pair.a)));
    expect(Math.max(...product.map(Math.abs))).toBeLessThan(1e-7);
    for (const factor of [pair.a, pair.b]) {
      const s = scope(() => numbers(singularValues(factor)));
      expect(s[3]).toBeGreaterThan(0.01);
      expect(s[4]).toBeLessThan(1e-6);
    }
    all.push(...numbers(pair.a), ...numbers(pair.b));
  }
  const deviation = Math.sqrt(all.reduce((sum, v) => sum + v * v, 0) / all.length);
  expect(Math.abs(deviation - Math.sqrt(1 / 200))).toBeLessThan(0.003);
});

it('is no small change of W, since its terms cancel', async () => {
  const tuned = await create({ r: 4 });
  const forms = tuned.modules.map((module) => module.update()?.lowRank[0]?.form);
  expect(new Set(forms)).toEqual(new Set(['exact']));
});

it('refuses an odd rank by name, and leaves the model free', async () => {
  const model = new TinyModel();
  await expect(create({ r: 3 }, model)).rejects.toThrow(ArgumentError);
  await expect(create({ r: 4, rankPattern: { down_proj: 1 } }, model)).rejects.toThrow(
    'layers.0.down_proj: initLoraWeights orthogonal needs an even rank, got r=1; set r, or rankPattern for it, to 2',
  );
  expect((await create({ r: 2 }, model)).modules).toHaveLength(6);
});
