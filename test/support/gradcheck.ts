// Random tensors and numbers for tests, and the library's gradient check.
import { uniform } from '../../lib/gradcheck.ts';
import { type Tensor, tensor } from '../../lib/tensor.ts';

export { type GradcheckOptions, gradcheck } from '../../lib/gradcheck.ts';

/** A seeded generator of test data, uniform in [-1, 1). */
export const testRandom = uniform;

/** A tensor of random values; default dtype f64. */
export function randomTensor(
  shape: readonly number[],
  { seed = 1, dtype = 'f64' as Tensor['dtype'], requiresGrad = false } = {},
): Tensor {
  const random = testRandom(seed);
  const size = shape.reduce((product, extent) => product * extent, 1);
  const values = Float64Array.from({ length: size }, random);
  return tensor(values, { shape, dtype, requiresGrad });
}
