/**
 * Variants with tensors of their own in the place of a trained pair A, B: VeRA's vectors, HRA's reflections. In PEFT each of them has a
 * `peft_type` and a configuration class of its own. Most are still a low-rank update, whose a and b are functions of these tensors
 * (`lowRankVariant`), and run as one op with the base's product; the others change the whole weight (`denseVariant`).
 */
import { customOp } from '../../autograd.ts';
import { UnsupportedError } from '../../errors.ts';
import { add, mul } from '../../ops/index.ts';
import { computeOwned, type Tensor } from '../../tensor.ts';
import { copyOf } from '../copies.ts';
import { type LowRankPair, masterDType, productOf } from '../low_rank.ts';
import { PythonFloat, type PythonJson } from '../python_json.ts';
import type {
  AdapterType,
  ConfigKey,
  ModuleSizes,
  Settings,
  Variant,
  VariantModule,
} from './method.ts';

/** An adapted linear, as the formula of a variant with tensors of its own sees it; in f32, or in f64 where it is merged. */
export interface FormModule extends ModuleSizes {
  readonly settings: Settings;
  /** The scale s: alpha / r, or 1 for a type that has no alpha. */
  readonly scale: number;
  /** The frozen weight (out,in), in the model's dtype or f64. */
  readonly weight: Tensor;
  /** One of the module's tensors, or one that all share. */
  tensor(key: string): Tensor;
  /** A tensor that depends on no trained value; see {@link VariantModule}. */
  constant(key: string, make: () => Tensor): Tensor;
}

type Described = Omit<AdapterType, 'shared' | 'refuses' | 'refusesStart' | 'loraObstacle'> &
  Partial<AdapterType> & { readonly formula: string };

/** The description of a low-rank variant: `factors` gives a (r,in) and b (out,r) of y += s (x a^T) b^T. */
export interface LowRankForm extends Described {
  factors(module: FormModule): LowRankPair;
  /** See {@link Variant}; default true. */
  readonly pairIsChange?: boolean;
}

/** The description of a variant that changes the whole weight: `change` gives D (out,in) of y += x D^T. */
export interface DenseForm extends Described {
  change(module: FormModule): Tensor;
}

const kFullRank = 'changes the whole weight at full rank, which no pair A, B of low rank does';

/** A variant whose update is a pair that is computed from its tensors. */
export function lowRankVariant({
  factors,
  formula,
  pairIsChange = true,
  ...form
}: LowRankForm): Variant {
  return {
    ...kCommon,
    type: adapterType(form),
    formula,
    pairIsChange,
    update: (module, plain) => {
      const { scale, form } = module;
      return { ...plain, lowRank: [{ ...factors(seen(module)), scale, form }] };
    },
    mergedWeight: (module, base) =>
      add(base, mul(productOf(factors(seenExactly(module, base))), module.scale)),
    toLora: (module) => rounded(module, factors),
    residualObstacle: `${form.peftType}: it has no pair A, B of its own`,
  };
}

/** A variant whose update is a change of the whole weight. */
export function denseVariant({ change, formula, ...form }: DenseForm): Variant {
  return {
    ...kCommon,
    type: adapterType({ loraObstacle: () => kFullRank, ...form }),
    formula,
    pairIsChange: false,
    update: (module, plain) => ({ ...plain, lowRank: [], weightChange: change(seen(module)) }),
    mergedWeight: (module, base) => add(base, change(seenExactly(module, base))),
    toLora: () => {
      throw new UnsupportedError(
        `${form.peftType} ${kFullRank}; merge it into its base instead, or keep it as it is beside its base`,
      );
    },
    residualObstacle: `${form.peftType}: it has no pair A, B of its own`,
  };
}

const kCommon = {
  option: null,
  parameters: [],
  refuses: (init: unknown) => (init === true ? null : 'true'),
  mergedBias: () => null,
} as const;

function adapterType(form: Omit<Described, 'formula'>): AdapterType {
  return {
    shared: [],
    refuses: refusesRank,
    refusesStart: () => null,
    loraObstacle: () => null,
    ...form,
  };
}

/** Refuses a rank that is larger than the matrix allows, as plain LoRA does. */
export function refusesRank({ inFeatures, outFeatures, r }: ModuleSizes): string | null {
  const most = Math.min(inFeatures, outFeatures);
  if (r <= most) return null;
  return `rank r=${r} is larger than the matrix (out,in)=(${outFeatures},${inFeatures}) allows; set r, or rankPattern for it, to ${most} at most`;
}

/** Keys of LoRA's configuration that types of a pair A, B with a scale have, too. */
export const LORA_KEYS: Readonly<Record<string, ConfigKey>> = {
  alpha_pattern: { option: 'alphaPattern' },
  bias: { only: 'none' },
  exclude_modules: { option: 'excludeModules' },
  fan_in_fan_out: { option: 'fanInFanOut' },
  lora_alpha: { option: 'loraAlpha' },
  lora_dropout: { option: 'loraDropout' },
  rank_pattern: { option: 'rankPattern' },
};

/** Keys that are all idle, or all have one value that is supported. */
export const keysOf = (kind: 'only' | 'idle', keys: Readonly<Record<string, PythonJson>>) =>
  Object.fromEntries(
    Object.entries(keys).map(([key, value]) => [key, { [kind]: value } as ConfigKey]),
  );

/** A key of adapter_config.json that holds a number which Python writes with a point. */
export function floatKey(option: string): ConfigKey {
  return { option, toFile: (value: number) => new PythonFloat(value) };
}

/** A product of the frozen weight and one tensor, as a linear function of that tensor. */
export interface WeightProduct {
  product(weight: Tensor, x: Tensor): Tensor;
  /** The gradient of x from that of the product. */
  adjoint(weight: Tensor, dy: Tensor): Tensor;
}

/**
 * The product of the frozen weight and x (f32, or f64), with the weight in x's dtype. No copy of the weight is kept for backward,
 * which converts it again, and nothing is computed twice.
 */
export function withWeight(weight: Tensor, x: Tensor, { product, adjoint }: WeightProduct): Tensor {
  const { dtype } = x;
  return customOp(
    {
      name: 'product with the weight',
      forward: (inputs) => ({
        outputs: [product(weight.to(dtype), inputs[0] as Tensor)],
        saved: null,
      }),
      backward: ([dy]) => [dy ? adjoint(weight.to(dtype), dy) : null],
    },
    [x],
  )[0] as Tensor;
}

function seen(module: VariantModule): FormModule {
  const { linear, r, scale, settings } = module;
  const { inFeatures, outFeatures, weight } = linear;
  return {
    ...{ inFeatures, outFeatures, r, scale, settings, weight },
    tensor: (key) => module.parameter(key),
    constant: (key, make) => module.constant(key, make),
  };
}

/** The module in f64. */
function seenExactly(module: VariantModule, base: Tensor): FormModule {
  const plain = seen(module);
  return {
    ...plain,
    weight: base,
    tensor: (key) => plain.tensor(key).to('f64'),
    constant: (_, make) => make().to('f64'),
  };
}

/** The factors, computed in f64 and rounded once, as new tensors. */
function rounded(module: VariantModule, factors: LowRankForm['factors']): LowRankPair {
  const { weight } = module.linear;
  const dtype = masterDType(weight.dtype);
  return computeOwned(() => {
    const { a, b } = factors(seenExactly(module, weight.to('f64')));
    return { a: copyOf(a.to(dtype)), b: copyOf(b.to(dtype)) };
  });
}
