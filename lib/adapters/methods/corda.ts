/**
 * CorDA (Yang et al. 2024): with C the covariance of a module's inputs plus a hundredth of its mean diagonal, and W C = U S V^T,
 * B = U sqrt(S/s) and A = sqrt(S/s) V^T C^-1. `corda` takes the first r triplets, which the data use most (the instruction-previewed
 * mode), `corda_kpm` the last r, which the data use least (the knowledge-preserved mode).
 *
 * V^T C^-1 = S^-1 U^T W, so that C need not be inverted: s B A is the projection of W on the columns of U.
 */
import { add, div, matmul, mul, reshape, slice, sqrt, sum, svd } from '../../ops/index.ts';
import type { Tensor } from '../../tensor.ts';
import { leadingTriplets } from '../leading_triplets.ts';
import type { LowRankPair } from '../low_rank.ts';
import { defineMethod, defineStart, type StartModule, type Statistics } from './method.ts';

const kDamping = 0.01;

/** The left singular vectors u (M,R) and singular values s (R) of a matrix that a mode takes. */
type Choose = (task: { a: Tensor; rank: number; seed: number }) => { u: Tensor; s: Tensor };

const first: Choose = ({ a, ...task }) => {
  // Large matrices are searched in f32; small ones are decomposed as they are.
  const large = Math.min(...a.shape) > kLarge;
  return leadingTriplets([{ a: large ? a.to('f32') : a, ...task }])[0] as { u: Tensor; s: Tensor };
};

const last: Choose = ({ a, rank }) => {
  const { u, s } = svd(a);
  return { u: slice(u, 1, { start: -rank }), s: slice(s, 0, { start: -rank }) };
};

const kLarge = 128;

const cordaStart = <Value extends 'corda' | 'corda_kpm'>(
  value: Value,
  { title, of }: { title: string; of: Choose },
) =>
  defineStart<Value>({
    shown: [value],
    title,
    accepts: (given): given is Value => given === value,
    fromWeight: true,
    calibration: {
      reads: 'covariance',
      reduce: (modules, covariances) =>
        modules.map((module, i) => reduced(module, covariances[i] as Tensor, of)),
    },
    pairs: (modules) => modules.map(pairOf),
  });

const previewed = cordaStart('corda', {
  title:
    'the first r singular triplets of W C, times the inverse of C, the covariance of the inputs',
  of: first,
});
const preserved = cordaStart('corda_kpm', {
  title: 'the last r singular triplets of W C, times the inverse of C',
  of: last,
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

/** The columns of U, their singular values and S^-1 U^T W. */
function reduced({ weight, r, seed }: StartModule, covariance: Tensor, of: Choose): Statistics {
  const w = weight.to('f64');
  const width = covariance.shape[0] as number;
  const trace = sum(slice(reshape(covariance, [-1]), 0, { step: width + 1 }));
  const a = add(matmul(w, covariance), mul(w, mul(trace, kDamping / width)));
  const { u, s } = of({ a, rank: r, seed: seed('svd') });
  const rows = matmul(u.to('f64'), w, { transposeA: true }); // (r,in)
  return { u, s, rows: div(rows, reshape(s.to('f64'), [r, 1])) };
}

function pairOf({ statistics, scale, r }: StartModule): LowRankPair {
  const { u, s, rows } = statistics as { u: Tensor; s: Tensor; rows: Tensor };
  const root = sqrt(mul(s, 1 / scale)); // (r)
  return { a: mul(rows, reshape(root, [r, 1])), b: mul(u, root) };
}
