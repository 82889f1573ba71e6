import { expect, it } from 'vitest';
import { AdapterModel, type LoraModule } from '../../../lib/adapters/adapter_model.ts';
import type { LowRankPair } from '../../../lib/adapters/low_rank.ts';
import { startNamed } from '../../../lib/adapters/methods/registry.ts';
import type { Tensor } from '../../../lib/tensor.ts';
import { expectNear } from '../../support/tiny_adapters.ts';
import { TinyModel } from '../../support/tiny_model.ts';

const numbers = (value: Tensor): number[] => Array.from(value.dataSync() as Float32Array);

it('subtracts the best rank-r approximation from W', async () => {
  const model = new TinyModel();
  const tuned = await AdapterModel.create(model, {
    r: 8,
    loraAlpha: 8,
    initLoraWeights: 'pissa',
  });
  const module = tuned.modules.find(({ name }) => name === 'layers.0.down_proj');
  // The approximation is W itself at r = min(in, out). Initially A = A0 and B = B0, so that the pair alone is W.
  const { a, b } = (module as LoraModule).frozen as LowRankPair;
  const [rank, inner, out] = [8, 16, 8];
  const [av, bv, w] = [numbers(a), numbers(b), numbers((module as LoraModule).linear.weight)];
  const product = Array.from({ length: out * inner }, (_, at) => {
    const [row, column] = [Math.floor(at / inner), at % inner];
    let sum = 0;
    for (let k = 0; k < rank; k++)
      sum += (bv[row * rank + k] as number) * (av[k * inner + column] as number);
    return sum;
  });
  expectNear(product, w, 1e-5);
});

it('has a name with and one without a number of iterations', () => {
  for (const name of ['pissa', 'pissa_niter_0', 'pissa_niter_16']) {
    expect(startNamed(name)?.shown, name).toEqual(['pissa', 'pissa_niter_N']);
  }
  for (const name of ['pissa_', 'pissa_niter_', 'pissa_niter_x', 'pissa_niter_-1', 'Pissa']) {
    expect(startNamed(name), name).toBeNull();
  }
});
