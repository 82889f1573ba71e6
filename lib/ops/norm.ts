// Normalisation ops.
import { native } from '../native.ts';
import { checkKeys } from '../options/call.ts';
import { Tensor } from '../tensor.ts';

/** Options of {@link rmsNorm}. */
export interface RmsNormOptions {
  /** Added to the mean square. Default 1e-6. */
  eps?: number;
  /** Added to the weight (Gemma stores weights minus one). Default 0. */
  weightOffset?: number;
  /** Whether to round the normalised value to the activations' dtype before it is multiplied (Llama). Default true. */
  castBeforeWeight?: boolean;
}

/**
 * RMSNorm over the last dimension: y = x / sqrt(mean(x^2) + eps) * (weight + weightOffset).
 * @param x (..., C), any float dtype
 * @param weight (C), of x's dtype
 * @returns (..., C), of x's dtype; statistics are taken in f32 (f64 for f64)
 */
export function rmsNorm(x: Tensor, weight: Tensor, options: RmsNormOptions = {}): Tensor {
  checkKeys('rmsNorm', options, 'eps weightOffset castBeforeWeight');
  const { eps = 1e-6, weightOffset = 0, castBeforeWeight = true } = options;
  return new Tensor(native.rmsNorm(x.handle, weight.handle, eps, weightOffset, castBeforeWeight));
}

/**
 * The sum of two tensors and its RMSNorm in one pass over memory, as in every pre-norm block: sum = x + residual (rounded to the
 * dtype), y = rmsNorm(sum). Backward merges the gradients of both outputs in one pass, too.
 * @param x (..., C), any float dtype
 * @param residual like x
 * @param weight (C), of x's dtype
 * @returns [sum, y], both (..., C)
 */
export function rmsNormAdd(
  x: Tensor,
  residual: Tensor,
  weight: Tensor,
  options: RmsNormOptions = {},
): [sum: Tensor, y: Tensor] {
  checkKeys('rmsNormAdd', options, 'eps weightOffset castBeforeWeight');
  const { eps = 1e-6, weightOffset = 0, castBeforeWeight = true } = options;
  const [sum, y] = native.rmsNormAdd(
    x.handle,
    residual.handle,
    weight.handle,
    eps,
    weightOffset,
    castBeforeWeight,
  );
  return [new Tensor(sum), new Tensor(y)];
}

/** Options of {@link layerNorm}. */
export interface LayerNormOptions {
  /** (C), of x's dtype; left out: 1. */
  weight?: Tensor | null;
  /** (C), of x's dtype; left out: 0. */
  bias?: Tensor | null;
  /** Added to the variance. Default 1e-5. */
  eps?: number;
}

/**
 * LayerNorm over the last dimension: y = (x - mean) / sqrt(var + eps) * weight + bias, var without Bessel's correction.
 * @param x (..., C), any float dtype
 * @returns (..., C), of x's dtype; statistics are taken in f32 (f64 for f64)
 */
export function layerNorm(x: Tensor, options: LayerNormOptions = {}): Tensor {
  checkKeys('layerNorm', options, 'weight bias eps');
  const { weight = null, bias = null, eps = 1e-5 } = options;
  return new Tensor(native.layerNorm(x.handle, weight?.handle ?? null, bias?.handle ?? null, eps));
}
