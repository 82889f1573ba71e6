import { expect, it } from 'vitest';
import { AdapterModel } from '../../../lib/adapters/adapter_model.ts';
import { add, matmul, mul, slice, svd } from '../../../lib/ops/index.ts';
import { noGrad, scope, type Tensor } from '../../../lib/tensor.ts';
import { expectNear } from '../../support/tiny_adapters.ts';
import { TinyModel } from '../../support/tiny_model.ts';

const numbers = (value: Tensor): number[] => Array.from(value.dataSync() as Float32Array);

it('and PiSSA of the other triplets make up the weight', async () => {
  const create = (initLoraWeights: 'milora' | 'pissa', r: number) =>
    AdapterModel.create(new TinyModel(), { r, loraAlpha: 2 * r, initLoraWeights });
  const [last, first] = [await create('milora', 3), await create('pissa', 5)];
  for (const [i, module] of last.modules.entries()) {
    const other = first.modules[i] as typeof module;
    const sum = scope(() =>
      numbers(
        add(
          mul(matmul(module.pair.b, module.pair.a), module.scale),
          mul(matmul(other.pair.b, other.pair.a), other.scale),
        ),
      ),
    );
    expectNear(sum, numbers(module.linear.weight), 1e-5);
    // Both factors have the roots of the singular values.
    const [a, b] = scope(() => [
      numbers(matmul(module.pair.a, module.pair.a, { transposeB: true })),
      numbers(matmul(module.pair.b, module.pair.b, { transposeA: true })),
    ]) as [number[], number[]];
    expectNear(a, b, 1e-6);
  }
});

it('refuses a rank that is larger than the weight allows', async () => {
  await expect(AdapterModel.create(new TinyModel(), { r: 9, method: 'milora' })).rejects.toThrow(
    /gate_proj: rank r=9 is larger than the matrix/,
  );
});

it('of a large weight is the last triplets of its complete decomposition', async () => {
  const model = new TinyModel({ width: 168, layers: 1 });
  const tuned = await AdapterModel.create(model, { r: 6, loraAlpha: 12, method: 'milora' });
  for (const { pair, linear, scale, name } of tuned.modules) {
    const { found, expected } = scope(() =>
      noGrad(() => {
        const { u, s, vt } = svd(linear.weight.to('f64'));
        const [start, rows] = [-6, slice(vt, 0, { start: -6 })];
        const columns = mul(slice(u, 1, { start }), slice(s, 0, { start }));
        return {
          found: numbers(mul(matmul(pair.b.to('f64'), pair.a.to('f64')), scale)),
          expected: numbers(matmul(columns, rows)),
        };
      }),
    );
    const error = Math.hypot(...found.map((value, i) => value - (expected[i] as number)));
    expect(error / Math.hypot(...expected), name).toBeLessThan(1e-5);
  }
});
