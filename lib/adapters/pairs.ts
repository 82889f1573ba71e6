/** The pairs of LoRA's modules: what a start makes of them, and how they are computed. */
import type { Linear } from '../nn/linear.ts';
import { matmul, mul, square, sum } from '../ops/index.ts';
import { noGrad, scope, type Tensor } from '../tensor.ts';
import type { AdaptedLinear } from './adapted_linear.ts';
import { trainablePair } from './attach.ts';
import type { LoraParts } from './lora_module.ts';
import { type LowRankPair, tensorsOfPair } from './low_rank.ts';
import { startNamed } from './methods/registry.ts';
import { QuantizedBase } from './quantized_base.ts';
import type { MadePair, PairTarget } from './starts.ts';

/** The parts of a module that its start makes. */
export type StartedModule = Pick<LoraParts, 'parameters' | 'frozen' | 'quantized'>;

/** The parts that a first pair makes: the module owns that where it is kept frozen, otherwise it is freed. */
export function startedPair(
  { fromWeight, less, ...first }: MadePair,
  target: PairTarget,
  init: unknown,
): StartedModule {
  const parameters = tensorsOfPair(trainablePair(first, target.linear));
  const quantized = ownBase(target, init, { first, less });
  if (fromWeight) return { parameters, quantized, frozen: first };
  for (const tensor of Object.values(first)) tensor.dispose();
  return { parameters, quantized };
}

/** A frozen copy of a pair that a folder holds, in the dtype of the trained one; null: it holds none. */
export function frozenCopy(given: LowRankPair | undefined, linear: Linear): LowRankPair | null {
  if (given === undefined) return null;
  const pair = trainablePair(given, linear);
  for (const tensor of [pair.a, pair.b]) tensor.requiresGrad = false;
  return pair;
}

/**
 * The base that a start makes for its adapter; null: it makes none.
 * @param pairs less: the pair of its own that the start takes off W, null where it has none
 */
export function ownBase(
  module: Pick<PairTarget, 'name' | 'linear' | 'scale'>,
  init: unknown,
  { first, less }: { first: LowRankPair; less: LowRankPair | null },
): QuantizedBase | null {
  const taken = startNamed(init)?.quantizes?.(init as never);
  if (taken === undefined) return null;
  return new QuantizedBase({
    ...module,
    less: taken === 'first' ? first : less,
    own: taken === 'own' ? less : null,
  });
}

/** Ratio of the norm of B A to that of its r rank-one terms, below which these cancel; where they are independent it is 1. */
const kCancelled = 0.25;
/** Ratio of the norm of s B A to that of its base weight, above which it is more than a small change. */
const kSmall = 0.25;

/** Has a module's update computed in full precision where it is not a small change of its linear, as far as a pair equals it. */
export async function settleForm(module: AdaptedLinear): Promise<void> {
  const { variant, settings } = module;
  if (module.form !== 'change' || variant.type.loraObstacle(settings) !== null) return;
  const pair = variant.toLora(module);
  if (!(await isSmallSum(pair, module.linear, module.scale))) module.form = 'exact';
  module.release(pair);
}

/**
 * Whether s B A is small beside its base and not a difference of large terms. A folder does not name the pair's first values: a
 * pair exported from PiSSA either holds B A - B0 A0, which is small beside both terms, or belongs on a residual and holds the
 * largest part of the weight.
 */
async function isSmallSum(
  { a, b }: LowRankPair,
  { weight }: Linear,
  scale: number,
): Promise<boolean> {
  const norms = scope(() =>
    noGrad(() => [
      // |B A|^2 is the sum of (A A^T) * (B^T B), whose diagonal holds the squares of the terms.
      sum(mul(matmul(a, a, { transposeB: true }), matmul(b, b, { transposeA: true }))),
      sum(mul(sum(square(a), { axis: 1 }), sum(square(b), { axis: 0 }))),
      sum(square(weight.to(a.dtype))),
    ]),
  ) as [Tensor, Tensor, Tensor];
  const [product, apart, base] = (await Promise.all(norms.map((norm) => norm.item()))) as [
    number,
    number,
    number,
  ];
  for (const norm of norms) norm.dispose();
  return product >= kCancelled ** 2 * apart && scale ** 2 * product <= kSmall ** 2 * base;
}
