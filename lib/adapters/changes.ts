/** The change of a weight by an adapter of any method, and the ranks that hold a share of it. */
import { sub } from '../ops/index.ts';
import type { Tensor } from '../tensor.ts';
import type { AdaptedLinear } from './adapted_linear.ts';

/** The change of a module's weight (out,in), f64. */
export function changeOf(module: AdaptedLinear): Tensor {
  return sub(
    module.variant.mergedWeight(module, module.startWeight()),
    module.linear.weight.to('f64'),
  );
}

/**
 * The smallest rank whose leading singular values hold a share of the sum of all squares.
 * @param squares the squared singular values, falling
 * @param share above 0 and at most 1
 */
export function rankOfEnergy(squares: readonly number[], share: number): number {
  const total = squares.reduce((sum, square) => sum + square, 0);
  if (total === 0) return 0;
  let sum = 0;
  const last = squares.findIndex((square) => {
    sum += square;
    return sum >= share * total * (1 - 1e-12);
  });
  return last < 0 ? squares.length : last + 1;
}

/** The reason why the change of its weight is not all that a module's adapter does, to follow its name; null: it is. */
export function convertObstacle({ variant }: AdaptedLinear): string | null {
  if (variant.option !== 'loraBias') return null;
  return 'the adapter has a bias (loraBias), which a pair A, B cannot hold; merge it into the model instead';
}
