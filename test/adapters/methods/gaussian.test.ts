import { expect, it } from 'vitest';
import { AdapterModel } from '../../../lib/adapters/adapter_model.ts';
import type { Tensor } from '../../../lib/tensor.ts';
import { TinyModel } from '../../support/tiny_model.ts';

const numbers = (value: Tensor): number[] => Array.from(value.dataSync() as Float32Array);

it('draws A with deviation 1/r, whatever the width, and starts B at zero', async () => {
  const r = 8;
  const tuned = await AdapterModel.create(new TinyModel({ width: 32, layers: 20 }), {
    r,
    method: 'gaussian',
  });
  const values = tuned.modules.flatMap(({ pair }) => numbers(pair.a));
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  const deviation = Math.sqrt(values.reduce((sum, v) => sum + v * v, 0) / values.length);
  expect(Math.abs(mean)).toBeLessThan(0.003);
  expect(Math.abs(deviation - 1 / r)).toBeLessThan(0.003);
  expect(tuned.modules.every(({ pair }) => numbers(pair.b).every((v) => v === 0))).toBe(true);
  expect(new Set(tuned.modules.map(({ pair }) => numbers(pair.a)[0])).size).toBe(60);
});
