/**
 * CorDA (Yang et al. 2024): with C the covariance of a module's inputs plus a hundredth of its mean diagonal, and W C = U S V^T,
 * B = U sqrt(S/s) and A = sqrt(S/s) V^T C^-1. `corda` takes the first r triplets, which the data use most (the instruction-previewed
 * mode), `corda_kpm` the last r, which the data use least (the knowledge-preserved mode).
 *
 * V^T C^-1 = S^-1 U^T W, so that C need not be inverted: s B A is the projection of W on the columns of U.
 */
import {
  add,
  div,
  matmul,
  mul,
  reshape,
  type SvdTask,
  sqrt,
  trailingSvds,
} from '../../ops/index.ts';
import type { Tensor } from '../../tensor.ts';
import { leadingTriplets } from '../leading_triplets.ts';
import type { LowRankPair } from '../low_rank.ts';
import { trace } from '../trace.ts';
import { defineMethod, defineNamedStart, type StartModule, type Statistics } from './method.ts';

const kDamping = 0.01;

/** The left singular vectors u (M,R) and singular values s (R) of each matrix that a mode takes. */
type Choose = (tasks: readonly SvdTask[]) => readonly { u: Tensor; s: Tensor }[];

/** A mode: which triplets it takes, and of which weights the products are made in f32, as a search of leading triplets does it. */
interface Mode {
  readonly title: string;
  readonly of: Choose;
  readonly inF32: (weight: Tensor) => boolean;
}

/** The definition of a mode, by the triplets that it takes. */
const cordaStart = <Value extends 'corda' | 'corda_kpm'>(
  value: Value,
  { of, inF32, title }: Mode,
) =>
  defineNamedStart(value, {
    title,
    fromWeight: true,
    calibration: {
      reads: 'covariance',
      reduce: (modules, sums, sequences) => {
        const weights = modules.map(({ weight }) => weight.to(inF32(weight) ? 'f32' : 'f64'));
        const tasks = modules.map(({ r: rank, seed }, i) => ({
          a: weighted(weights[i] as Tensor, sums[i] as Tensor, sequences),
          rank,
          seed: seed('svd'),
        }));
        return of(tasks).map((found, i) => reduced(weights[i] as Tensor, found));
      },
    },
    pairs: (modules) => modules.map(pairOf),
  });

const previewed = cordaStart('corda', {
  title:
    'the first r singular triplets of W C, times the inverse of C, the covariance of the inputs',
  of: leadingTriplets,
  inF32: ({ shape, dtype }) => dtype !== 'f64' && Math.min(...shape) > 128,
});
const preserved = cordaStart('corda_kpm', {
  title: 'the last r singular triplets of W C, times the inverse of C',
  of: trailingSvds,
  inF32: () => false,
});

export const corda = defineMethod({
  name: 'corda',
  title: 'CorDA: LoRA that starts from the part of each weight that the data use most, or least',
  about:
    "The part of W that is trained is chosen by the second moments of the module's inputs on your data, one sequence as one " +
    "sample: `corda` trains what they use most, `initLoraWeights: 'corda_kpm'` what they use least, so that what the base knows " +
    'of these data stays. Give `corda_kpm` data whose knowledge is to stay (`--calibration-data`), which are not those of the ' +
    'run. [A calibration](adapters.md#a-start-from-your-data) takes 8 in^2 bytes for each input, and about as much time again ' +
    'as its forward passes.',
  differs:
    'it takes one sequence a forward and does not mask padding; its folder cannot be loaded on the original base, and is ' +
    'refused here with the reason; the mode is an option of its own there (`corda_method`), `ipm` for `corda` and `kpm` for ' +
    '`corda_kpm`',
  source: 'arXiv 2406.05223',
  since: '0.2.0',
  adapter: { initLoraWeights: 'corda' },
  starts: [previewed, preserved],
});

/** W C for the damped covariance C, in W's dtype. */
function weighted(w: Tensor, sum_: Tensor, sequences: number): Tensor {
  const damping = mul(trace(sum_).to(w.dtype), kDamping / (sum_.shape[0] as number));
  const share = mul(w, 1 / sequences);
  return add(matmul(share, sum_.to(w.dtype)), mul(share, damping));
}

/** The columns of U, their singular values and S^-1 U^T W. */
function reduced(w: Tensor, { u, s }: { u: Tensor; s: Tensor }): Statistics {
  const rows = matmul(u.to(w.dtype), w, { transposeA: true }); // (r,in)
  return { u, s, rows: div(rows, reshape(s.to(w.dtype), [-1, 1])) };
}

function pairOf({ statistics, scale, r }: StartModule): LowRankPair {
  const { u, s, rows } = statistics as { u: Tensor; s: Tensor; rows: Tensor };
  const root = sqrt(mul(s, 1 / scale)); // (r)
  return { a: mul(rows, reshape(root, [r, 1])), b: mul(u, root) };
}
