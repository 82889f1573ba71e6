/**
 * Gradient clipping by the norm of all gradients together, as torch.nn.utils.clip_grad_norm_ does it: the gradients are
 * multiplied by min(1, c / (norm + 1e-6)). The norm is summed in f64; the factor stays on the device.
 */
import { clipCoefficient, gradNorm, zeros } from '../ops/index.ts';
import { noGrad, scope, type Tensor } from '../tensor.ts';

/** The sum of |x|, the root of the sum of squares, or the largest |x|. */
export type NormType = 1 | 2 | 'inf';

/** Norm of all gradients, and what they are to be multiplied by. */
export interface ClippedNorm {
  /** Before clipping. */
  readonly norm: number;
  /** () f64 for {@link Optimizer.step}; null: nothing is clipped. The caller's to dispose. */
  readonly coefficient: Tensor | null;
}

/** Options of {@link clipNorm}. */
export interface ClipOptions {
  /** 0 only measures. */
  maxNorm: number;
  /** Default 2. */
  normType?: NormType;
}

/**
 * Norm of the gradients of `parameters` (one without a gradient counts as zero) and the factor that clips them.
 * Waits for the engine.
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

/** The same without waiting: () f64 both, the caller's to dispose. */
export function clippedNorm(
  parameters: readonly Tensor[],
  { maxNorm, normType = 2 }: ClipOptions,
): { norm: Tensor; coefficient: Tensor | null } {
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
