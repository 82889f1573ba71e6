/** A loss that tells every element of hidden states apart, for tests that compare two ways to make them. */
import type { Model } from '../../lib/models/index.ts';
import { mul, sum } from '../../lib/ops/index.ts';
import { noGrad, type Tensor, tensor } from '../../lib/tensor.ts';

/** A loss that weighs every element of the hidden states differently; its value and the gradients of all parameters. */
export function weighed(model: Model, hidden: Tensor): Tensor[] {
  const weights = Float64Array.from({ length: hidden.size }, (_, i) => Math.sin(i + 1));
  const factors = tensor(weights, { shape: [...hidden.shape] }).to(hidden.dtype);
  sum(mul(hidden, factors)).backward();
  const gradients = model.parameters().map((parameter) => {
    const { grad } = parameter;
    parameter.grad = null;
    return grad ?? noGrad(() => mul(parameter, 0));
  });
  return [hidden, ...gradients];
}
