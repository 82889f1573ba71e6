import { expect, it } from 'vitest';
import { AdapterModel } from '../../../lib/adapters/adapter_model.ts';
import { matmul, qr, slice } from '../../../lib/ops/index.ts';
import { scope, type Tensor } from '../../../lib/tensor.ts';
import { expectNear } from '../../support/tiny_adapters.ts';
import { TinyModel } from '../../support/tiny_model.ts';

const numbers = (value: Tensor): number[] => Array.from(value.dataSync() as Float32Array);

it('starts from the heads of Q and R, undivided by the scale', async () => {
  const r = 3;
  const tuned = await AdapterModel.create(new TinyModel(), { r, loraAlpha: 6, method: 'olora' });
  for (const { pair, linear } of tuned.modules) {
    const factors = scope(() => qr(linear.weight));
    const heads = scope(() => [
      slice(factors.q, 1, { stop: r }).to('f64'),
      slice(factors.r, 0, { stop: r }).to('f64'),
    ]) as [Tensor, Tensor];
    expectNear(numbers(pair.b), numbers(heads[0]), 1e-6);
    expectNear(numbers(pair.a), numbers(heads[1]), 1e-6);
    const head = (values: number[]): number[] =>
      values.filter((_, at) => at % linear.inFeatures < r);
    const product = scope(() => numbers(matmul(pair.b, pair.a)));
    expectNear(head(product), head(numbers(linear.weight)), 1e-6);
  }
});

it('refuses a rank that is larger than the weight allows', async () => {
  await expect(AdapterModel.create(new TinyModel(), { r: 9, method: 'olora' })).rejects.toThrow(
    /gate_proj: rank r=9 is larger than the matrix \(out,in\)=\(16,8\) allows/,
  );
});
