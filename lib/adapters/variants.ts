/**
 * Which variant of the low-rank update runs, one row a variant: the tensor that it trains beside A and B, how that
 * starts, what it makes of a forward, and what of the weights when the adapter is merged.
 */
import { ArgumentError } from '../errors.ts';
import type { LinearUpdate } from '../nn/adapter_hook.ts';
import type { Linear } from '../nn/linear.ts';
import { add, div, type LowRank, mul, reshape, rowNorm, sqrt, sum, zeros } from '../ops/index.ts';
import type { Tensor } from '../tensor.ts';
import type { LoraConfig } from './config.ts';

/** What a variant sees of a module. */
export interface VariantInput {
  readonly name: string;
  readonly linear: Linear;
  /** The trained pair, and (negative) the frozen one. */
  readonly parts: readonly LowRank[];
  readonly scale: number;
}

export interface Variant {
  /** Under which PEFT keeps the extra tensor, behind the module's path; null: there is none. */
  readonly extraKey: string | null;
  /** First value of the extra tensor, (out) in the master's dtype. */
  start(input: VariantInput): Tensor;
  /**
   * What the extra tensor adds to the update.
   * @param norm (out) the rows' norm of W + s B A, made when asked for and kept while A and B stay as they are
   */
  update(extra: Tensor, input: VariantInput, norm: () => Tensor): Partial<LinearUpdate>;
  /** From W + s B A in f64 to the weight that computes the same. */
  mergeWeight(exact: Tensor, extra: Tensor): Tensor;
  /** The bias that computes the same in f64, null where it stays. @throws ArgumentError where it cannot be */
  mergeBias(extra: Tensor, input: VariantInput): Tensor | null;
}

/** y = W x + s B A x (Hu et al. 2021). */
const lora: Variant = {
  extraKey: null,
  start: refuse,
  update: refuse,
  mergeWeight: refuse,
  mergeBias: refuse,
};

/**
 * DoRA (Liu et al. 2024): y = m / ||W + s B A|| (W + s B A) x, by rows; m starts as the norm, which is held constant in
 * the gradient.
 */
const dora: Variant = {
  extraKey: 'lora_magnitude_vector',
  start: ({ linear, parts }) => rowNorm(linear.weight, parts),
  update: (magnitude, _, norm) => ({ outputScale: div(magnitude, norm()) }),
  mergeWeight: (exact, magnitude) => {
    const norm = sqrt(sum(mul(exact, exact), { axis: 1 }));
    const factor = div(magnitude.to('f64'), norm);
    return mul(exact, reshape(factor, [factor.size, 1]));
  },
  mergeBias: () => null,
};

/** PEFT's lora_bias: B has a bias of its own, scaled like the pair; y = W x + s (B A x + c). */
const bias: Variant = {
  extraKey: 'lora_B.bias',
  start: ({ linear: { outFeatures, weight } }) =>
    zeros([outFeatures], { dtype: masterDType(weight.dtype), device: weight.device }),
  update: (offset, { scale }) => ({ bias: mul(offset, scale) }),
  mergeWeight: (exact) => exact,
  mergeBias: (offset, { name, linear, scale }) => {
    if (linear.bias === null) {
      throw new ArgumentError(
        `${name}: an adapter with loraBias cannot be merged into a layer without a bias`,
      );
    }
    return add(linear.bias.to('f64'), mul(offset.to('f64'), scale));
  },
};

export function variantOf({ useDora, loraBias }: LoraConfig): Variant {
  if (useDora) return dora;
  return loraBias ? bias : lora;
}

/** Of what is trained beside a base of this dtype. */
export function masterDType(base: Tensor['dtype']): 'f32' | 'f64' {
  return base === 'f64' ? 'f64' : 'f32';
}

function refuse(): never {
  throw new ArgumentError('plain LoRA has no tensor beside A and B');
}
