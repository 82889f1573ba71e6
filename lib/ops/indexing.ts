// Reading and adding through indices (i32 or i64). The device finds an index out of range: the error, with its value and
// position, comes at the next read or synchronize().
import { native } from '../native.ts';
import { checkKeys } from '../options/call.ts';
import { Tensor } from '../tensor.ts';

/**
 * Rows of a table by id. The weight's gradient is a scatter-add in f32 in the order of the ids, computed only if wanted.
 * @param weight (V, C)
 * @param ids any shape (...)
 * @returns (..., C)
 */
export function embedding(weight: Tensor, ids: Tensor): Tensor {
  return new Tensor(native.embedding(weight.handle, ids.handle));
}

/**
 * Selected entries of the first axis, in the order given; repeats add up in the gradient.
 * @param x (N, ...)
 * @param rows (M)
 * @returns (M, ...)
 */
export function indexSelect(x: Tensor, rows: Tensor): Tensor {
  return new Tensor(native.indexSelect(x.handle, rows.handle));
}

/**
 * One element an index along an axis: with axis 1, y[a,k,c] = x[a, index[a,k,c], c].
 * @param index agrees with x in every other axis
 * @returns the shape of index
 */
export function gather(x: Tensor, index: Tensor, options: { axis?: number } = {}): Tensor {
  checkKeys('gather', options, 'axis');
  return new Tensor(native.gather(x.handle, index.handle, options.axis ?? -1));
}

/**
 * x plus, along an axis, y[a, index[a,k,c], c] += source[a,k,c], in the order of k (the same bits every time).
 * @param index agrees with x in every other axis
 * @param source the shape of index, x's dtype
 * @returns the shape of x
 */
export function scatterAdd(
  x: Tensor,
  index: Tensor,
  source: Tensor,
  options: { axis?: number } = {},
): Tensor {
  checkKeys('scatterAdd', options, 'axis');
  return new Tensor(native.scatterAdd(x.handle, index.handle, source.handle, options.axis ?? -1));
}

/**
 * The k largest of the last axis in descending order; equal values in the order of their positions, a NaN above every number.
 * @returns values (..., k) of x's dtype, differentiable, and indices (..., k) i32
 * @throws ArgumentError when k is not in [0, C].
 */
export function topK(x: Tensor, k: number): { values: Tensor; indices: Tensor } {
  const [values, indices] = native.topK(x.handle, k);
  return { values: new Tensor(values), indices: new Tensor(indices) };
}
