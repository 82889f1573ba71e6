/**
 * The alternation that QPiSSA and LoftQ share. With W_0 = W, step t of T takes
 *
 *     Q_t = NF4(W - s B_t A_t)   and   s B_(t+1) A_(t+1) = the first r singular triplets of W - Q_t,
 *
 * LoftQ from B_1 A_1 = 0 on, and QPiSSA from the first triplets of W. QPiSSA keeps Q_T with the pair that was taken off before, LoftQ with the
 * one that follows.
 */
import { nf4Weight } from '../../io/blocks.ts';
import { div, mul, reshape, sqrt, sub } from '../../ops/index.ts';
import type { Tensor } from '../../tensor.ts';
import { leadingTriplets } from '../leading_triplets.ts';
import type { LowRankPair } from '../low_rank.ts';
import { residualOf } from '../quantized_base.ts';
import type { StartModule, StartPair } from './method.ts';

/** The pair of the first r triplets of each matrix, with equal shares of their values. */
function pairsOf(matrices: readonly Tensor[], modules: readonly StartModule[]): LowRankPair[] {
  const tasks = modules.map(({ r, seed }, i) => ({
    a: matrices[i] as Tensor,
    rank: r,
    seed: seed('svd'),
  }));
  return leadingTriplets(tasks).map(({ u, s, vt }, i) => {
    const { r, scale } = modules[i] as StartModule;
    const root = sqrt(div(s, scale)).to('f32'); // (r)
    return { a: mul(vt.to('f32'), reshape(root, [r, 1])), b: mul(u.to('f32'), root) };
  });
}

const searched = ({ weight }: StartModule): Tensor =>
  weight.dtype === 'f64' ? weight.to('f32') : weight;

/** The part of a weight that its codes lose, which are made of it less a pair: W - Q, f32. */
function lost({ name, weight, scale }: StartModule, less: LowRankPair | null): Tensor {
  const codes = nf4Weight(residualOf(weight, less, scale), name, { dtype: 'f32' });
  return sub(weight.to('f32'), codes.to(weight.device).to('f32'));
}

/** A step of the alternation for all modules: the pairs that follow on others. */
function next(
  modules: readonly StartModule[],
  before: readonly (LowRankPair | null)[],
): LowRankPair[] {
  return pairsOf(
    modules.map((module, i) => lost(module, before[i] ?? null)),
    modules,
  );
}

/** The pairs of LoftQ after so many steps, each with the one before it; after one step that is none. */
export function loftqPairs(modules: readonly StartModule[], steps: number): StartPair[] {
  let before: (LowRankPair | null)[] = modules.map(() => null);
  let pairs = next(modules, before);
  for (let step = 1; step < steps; step++) {
    before = pairs;
    pairs = next(modules, before);
  }
  return pairs.map((pair, i) => {
    const less = before[i] ?? null;
    return less === null ? pair : { ...pair, less };
  });
}

/** The pairs of QPiSSA after so many steps. */
export function qpissaPairs(modules: readonly StartModule[], steps: number): StartPair[] {
  let pairs = pairsOf(modules.map(searched), modules);
  for (let step = 1; step < steps; step++) pairs = next(modules, pairs);
  return pairs;
}

/** A value of `initLoraWeights` with a number of steps, such as `loftq_iter_5`; without it there is one. */
export function stepsOf(name: string, value: unknown): number | null {
  if (value === name) return 1;
  if (typeof value !== 'string' || !value.startsWith(`${name}_iter_`)) return null;
  const digits = value.slice(`${name}_iter_`.length);
  return /^[1-9]\d{0,3}$/.test(digits) ? Number(digits) : null;
}
