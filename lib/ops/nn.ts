// Ops of transformer layers: gated activations, positions, softmax and its loss.
import { native } from '../native.ts';
import { Tensor } from '../tensor.ts';

/**
 * The gated activation of LLaMA's mlp: silu(gate) * up, silu(z) = z / (1 + e^-z) (Shazeer 2020, "GLU variants").
 * Only gate and up are kept for the backward.
 * @param gate (..., F), any float dtype; may be a row-strided slice of a fused product
 * @param up like gate
 * @returns (..., F), rounded once
 */
export function swiglu(gate: Tensor, up: Tensor): Tensor {
  return new Tensor(native.gated(gate.handle, up.handle, 'silu'));
}

/**
 * gelu(gate) * up, the gated activation of Gemma (approximate 'tanh') and T5 v1.1.
 * @param gate (..., F), any float dtype; may be a row-strided slice of a fused product
 * @param up like gate
 * @param options.approximate 'none' (default): 0.5 z (1 + erf(z / sqrt 2)); 'tanh': 0.5 z (1 + tanh(sqrt(2/pi)
 *   (z + 0.044715 z^3))), called gelu_new and gelu_pytorch_tanh in checkpoints
 * @returns (..., F), rounded once
 */
export function geglu(
  gate: Tensor,
  up: Tensor,
  { approximate = 'none' }: { approximate?: 'none' | 'tanh' } = {},
): Tensor {
  const activation = approximate === 'tanh' ? 'gelu_tanh' : 'gelu';
  return new Tensor(native.gated(gate.handle, up.handle, activation));
}

/** The angles of rope, by position. */
export interface RopeTables {
  /** (P, Drot/2) f32, f64 for f64 tensors: cos(position * frequency), scaled where the variant scales. */
  cos: Tensor;
  /** Like cos. */
  sin: Tensor;
}

/**
 * Rotary position embedding (Su et al. 2021) in the rotate-half convention of the HF checkpoints: with h = Drot/2,
 * y[i] = x[i] cos - x[i+h] sin and y[i+h] = x[i+h] cos + x[i] sin for i < h; channels from Drot on pass through.
 * @param x (N, H, D), any float dtype, D >= Drot; may be a row-strided slice of a fused q, k, v product
 * @param tables angles of P positions
 * @param positions (N) i32, each below P (a value outside is a NativeError at the next read)
 * @returns (N, H, D)
 */
export function rope(x: Tensor, { cos, sin }: RopeTables, positions: Tensor): Tensor {
  return new Tensor(native.rope(x.handle, cos.handle, sin.handle, positions.handle));
}

/**
 * e^x / sum(e^x) over the last dimension; sums are kept in f64.
 * @param x (..., C), any float dtype
 */
export function softmax(x: Tensor): Tensor {
  return new Tensor(native.softmax(x.handle));
}

/**
 * x - ln(sum(e^x)) over the last dimension; sums are kept in f64, so a vocabulary of 50k is right to f32's last places.
 * @param x (..., C), any float dtype
 */
export function logSoftmax(x: Tensor): Tensor {
  return new Tensor(native.logSoftmax(x.handle));
}

export interface CrossEntropyOptions {
  /**
   * 'mean' (default) over the rows that count, 'sum', or 'none': one loss a row, 0 where it is ignored. The mean over
   * no row at all is NaN.
   */
  reduction?: 'mean' | 'sum' | 'none';
}

/**
 * -ln softmax(logits)[target], for logits that exist as a tensor (the fused head losses never build them).
 * @param logits (N, V), any float dtype
 * @param targets (N) i32: class ids, or -100 for a row that does not count (another value outside 0..V-1 is a NativeError
 *   at the next read)
 * @returns () or (N), f32 (f64 for f64), summed in f64
 */
export function crossEntropy(
  logits: Tensor,
  targets: Tensor,
  { reduction = 'mean' }: CrossEntropyOptions = {},
): Tensor {
  return new Tensor(native.crossEntropy(logits.handle, targets.handle, reduction));
}
