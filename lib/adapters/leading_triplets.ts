/** The leading singular triplets of matrices: exact where they are small, by a randomised search to convergence where they are large. */
import { randomizedSvds, type SvdFactors, type SvdTask, slice, svd } from '../ops/index.ts';

/** Smaller dimension up to which a complete decomposition is made; it takes milliseconds. */
const kExact = 128;

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
