/** The trace of a square matrix. */
import { reshape, slice, sum } from '../ops/index.ts';
import type { Tensor } from '../tensor.ts';

/** The sum of the diagonal of a (C,C), a scalar of its dtype. */
export function trace(a: Tensor): Tensor {
  return sum(slice(reshape(a, [-1]), 0, { step: (a.shape[0] as number) + 1 }));
}
