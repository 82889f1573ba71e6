// The library's gradient check, and random tensors for tests.
import { uniform } from '../../lib/gradcheck.ts';
import { type Tensor, tensor } from '../../lib/tensor.ts';

export { type GradcheckOptions, gradcheck } from '../../lib/gradcheck.ts';

/** A small repeatable generator for test data, uniform in [-1, 1). */
export const testRandom = uniform;

/** Random values of a shape; f64 unless said. */
export function randomTensor(
  shape: readonly number[],
  { seed = 1, dtype = 'f64' as Tensor['dtype'], requiresGrad = false } = {},
): Tensor {
  const random = testRandom(seed);
  const size = shape.reduce((product, extent) => product * extent, 1);
  const values = Float64Array.from({ length: size }, random);
  return tensor(values, { shape, dtype, requiresGrad });
}
