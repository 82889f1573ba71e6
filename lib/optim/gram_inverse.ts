/** The inverse by which optimisers of low-rank pairs multiply the gradient of a factor. */
import { add, div, eigh, matmul } from '../ops/index.ts';
import type { Tensor } from '../tensor.ts';

/**
 * (A A^T + d I)^-1 of a (r,in), or (B^T B + d I)^-1 of b (out,r): (r,r), computed in f64 and rounded to the factor's dtype.
 * @param role whether the factor is a or b
 */
export function gramInverse(factor: Tensor, role: 'a' | 'b', d: number): Tensor {
  const wide = factor.to('f64');
  const gram = matmul(wide, wide, role === 'a' ? { transposeB: true } : { transposeA: true });
  const { values, vectors } = eigh(gram);
  const scaled = div(vectors, add(values, d)); // each eigenvector over its eigenvalue
  return matmul(scaled, vectors, { transposeB: true }).to(factor.dtype);
}
