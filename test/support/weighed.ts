/** A loss that depends differently on every element of hidden states, for tests that compare two computations of them. */
import type { Model } from '../../lib/models/index.ts';
import { mul, sum } from '../../lib/ops/index.ts';
import { noGrad, type Tensor, tensor } from '../../lib/tensor.ts';

/** The hidden states and the gradients of all parameters by a sum in which every element has another weight. */
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
