/**
 * Gradient clipping by the norm of all gradients together, as torch.nn.utils.clip_grad_norm_ does it: the gradients are
 * multiplied by min(1, c / (norm + 1e-6)). The norm is summed in f64; the factor stays on the device.
 */
import { clipCoefficient, gradNorm, zeros } from '../ops/index.ts';
import { checkKeys } from '../options/call.ts';
import { noGrad, scope, type Tensor } from '../tensor.ts';

/** A kind of norm: the sum of |x|, the root of the sum of squares, or the largest |x|. */
export type NormType = 1 | 2 | 'inf';

/** Norm of all gradients, and the factor that clips them. */
export interface ClippedNorm {
  /** The norm before clipping. */
  readonly norm: number;
  /** () f64 for {@link Optimizer.step}; null: nothing is clipped. The caller's to dispose. */
  readonly coefficient: Tensor | null;
}

/** Options of {@link clipNorm}. */
export interface ClipOptions {
  /** The largest norm; 0: gradients are not clipped. */
  maxNorm: number;
  /** Default 2. */
  normType?: NormType;
}

/**
 * Computes the norm of the gradients of `parameters` (one without a gradient counts as zero) and the factor that clips them. Waits
 * for the engine.
 */
export async function clipNorm(
  parameters: readonly Tensor[],
  options: ClipOptions,
): Promise<ClippedNorm> {
  const { norm, coefficient } = clippedNorm(parameters, options);
  try {
    return { norm: await norm.item(), coefficient };
  } finally {
    norm.dispose();
  }
}

/** Computes the norm and the factor of {@link clipNorm} without waiting. Both are () f64, and the caller disposes of them. */
export function clippedNorm(
  parameters: readonly Tensor[],
  options: ClipOptions,
): { norm: Tensor; coefficient: Tensor | null } {
  const { maxNorm, normType = 2 } = checkKeys('clipNorm', options, 'maxNorm normType');
  return scope(() =>
    noGrad(() => {
      const grads = parameters.flatMap(({ grad }) => (grad === null ? [] : [grad]));
      const device = parameters[0]?.device ?? 'cpu';
      const norm =
        grads.length > 0 ? gradNorm(grads, normType) : zeros([], { dtype: 'f64', device });
      return { norm, coefficient: maxNorm > 0 ? clipCoefficient(norm, maxNorm) : null };
    }),
  );
}
