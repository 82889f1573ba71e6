/** The leading singular triplets of matrices: exact where they are small, by a randomised search to convergence where they are large. */
import {
  div,
  mul,
  randomizedSvds,
  reshape,
  type SvdFactors,
  type SvdTask,
  slice,
  sqrt,
  svd,
} from '../ops/index.ts';
import type { LowRankPair } from './low_rank.ts';
import type { StartModule } from './methods/method.ts';

/** Smaller dimension up to which a complete decomposition is made; it takes milliseconds. */
const kExact = 128;

/** The search for the first r triplets of a module's weight; f64 is searched in f32. */
export function tripletsOf({ weight, r, seed }: StartModule): SvdTask {
  return { a: weight.dtype === 'f64' ? weight.to('f32') : weight, rank: r, seed: seed('svd') };
}

/** The pair with s B A = U S V^T, whose factors have equal shares of the singular values. */
export function pairOfTriplets({ u, s, vt }: SvdFactors, { r, scale }: StartModule): LowRankPair {
  const root = sqrt(div(s, scale)); // (r)
  return { a: mul(vt, reshape(root, [r, 1])), b: mul(u, root) };
}

/** The first `rank` singular triplets of each matrix: u (M,R), s (R), vt (R,N), f32 (f64 for f64). */
export function leadingTriplets(tasks: readonly SvdTask[]): SvdFactors[] {
  const large = tasks.filter(({ a }) => !isSmall(a.shape));
  const found = large.length === 0 ? [] : randomizedSvds(large);
  return tasks.map(({ a, rank }) => {
    if (!isSmall(a.shape)) return found.shift() as SvdFactors;
    const { u, s, vt } = svd(a);
    const stop = rank;
    return { u: slice(u, 1, { stop }), s: slice(s, 0, { stop }), vt: slice(vt, 0, { stop }) };
  });
}

function isSmall(shape: readonly number[]): boolean {
  return Math.min(...shape) <= kExact;
}
