// Normalisation ops.
import { native } from '../native.ts';
import { Tensor } from '../tensor.ts';

export interface RmsNormOptions {
  /** Added to the mean square. Default 1e-6. */
  eps?: number;
  /** Added to the weight (Gemma stores weights minus one). Default 0. */
  weightOffset?: number;
  /** Round the normalised value to the activation dtype before multiplying (Llama). Default true. */
  castBeforeWeight?: boolean;
}

/**
 * RMSNorm over the last dimension: y = x / sqrt(mean(x^2) + eps) * (weight + weightOffset).
 * @param x (..., C), any float dtype
 * @param weight (C), of x's dtype
 * @returns (..., C), of x's dtype; statistics are taken in f32 (f64 for f64)
 */
export function rmsNorm(
  x: Tensor,
  weight: Tensor,
  { eps = 1e-6, weightOffset = 0, castBeforeWeight = true }: RmsNormOptions = {},
): Tensor {
  return new Tensor(native.rmsNorm(x.handle, weight.handle, eps, weightOffset, castBeforeWeight));
}
