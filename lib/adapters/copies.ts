/** Copies of tensors, which keep their values while the originals are trained. */
import { copy_, zeros } from '../ops/index.ts';
import { noGrad, type Tensor, unscoped } from '../tensor.ts';

/** A copy of a tensor, in the scope of the caller. */
export function copyOf(source: Tensor): Tensor {
  return copy_(zeros(source.shape, { dtype: source.dtype, device: source.device }), source);
}

/** Copies of named tensors, which belong to no scope; all are enqueued before this returns. */
export function copiesOf(tensors: Readonly<Record<string, Tensor>>): Record<string, Tensor> {
  return unscoped(() =>
    noGrad(() =>
      Object.fromEntries(Object.entries(tensors).map(([name, tensor]) => [name, copyOf(tensor)])),
    ),
  );
}
