/**
 * LoRA as PEFT implements it: y = W x + s B A x, with the initialisations of A and B that are not computed from W, and an optional
 * bias of B.
 */
import { ArgumentError } from '../../errors.ts';
import { add, concat, mul, neg, rand, zeros } from '../../ops/index.ts';
import { noGrad, scope, type Tensor } from '../../tensor.ts';
import { deltaOf, type LowRankPair, masterDType, PAIR_KEYS } from '../low_rank.ts';
import { IDLE_KEYS, UNSUPPORTED_KEYS } from '../peft_keys.ts';
import {
  type AdapterType,
  defineMethod,
  defineStart,
  LORA_TYPE,
  type StartModule,
  trainedTensor,
  type Variant,
} from './method.ts';
import { keysOf, LORA_KEYS, refusesRank } from './own_form.ts';

/** PEFT's default initialisation, kaiming_uniform(a = sqrt 5), which is uniform within 1/sqrt(in). */
const uniform = defineStart<true>({
  shown: ['true'],
  title: 'A uniform within 1/sqrt(in), B zero',
  accepts: (value) => value === true,
  fromWeight: false,
  pairs: (modules) => modules.map(uniformPair),
});

const random = defineStart<false>({
  shown: ['false'],
  title: 'both uniform, so that the adapter changes the model from the start: for tests',
  accepts: (value) => value === false,
  fromWeight: false,
  pairs: (modules) =>
    modules.map((module) => {
      const { outFeatures, r } = module;
      const b = uniformWithin([outFeatures, r], 1 / Math.sqrt(r), module.seed('B'));
      return { a: uniformA(module), b };
    }),
});

/** LoRA's `peft_type`: a trained pair. */
const LORA: AdapterType = {
  peftType: LORA_TYPE,
  inPeft: true,
  keys: {
    ...LORA_KEYS,
    ...keysOf('idle', IDLE_KEYS),
    ...keysOf('only', UNSUPPORTED_KEYS),
    init_lora_weights: { option: 'initLoraWeights' },
  },
  pair: PAIR_KEYS,
  shared: [],
  tensors: () => [
    trainedTensor(PAIR_KEYS.a, ({ r, inFeatures }) => [r, inFeatures]),
    trainedTensor(PAIR_KEYS.b, ({ r, outFeatures }) => [outFeatures, r]),
  ],
  refuses: refusesRank,
  refusesStart: () => null,
  loraObstacle: () => null,
};

/** Plain LoRA, y = W x + s B A x (Hu et al. 2021). Variants that extend it spread this object and replace what differs. */
export const plain: Variant = {
  option: null,
  type: LORA,
  formula: 'W x + s B A x',
  parameters: [],
  refuses: () => null,
  update: (_, update) => update,
  pairIsChange: true,
  mergedWeight: (module, base) => add(base, deltaOf(module)),
  mergedBias: () => null,
  /** The pair itself or, with a frozen initial pair, [A; A0] and [B | -B0] of twice the rank. */
  toLora: ({ pair, frozen }) =>
    frozen === null
      ? pair
      : scope(() =>
          noGrad(() => ({
            a: concat([pair.a, frozen.a], 0),
            b: concat([pair.b, neg(frozen.b)], 1),
          })),
        ),
  residualObstacle: null,
};

const kBias = 'lora_B.bias';

/** LoRA with PEFT's lora_bias: B has a bias c of its own, scaled like the pair; y = W x + s (B A x + c). */
const withBias: Variant = {
  ...plain,
  option: 'loraBias',
  formula: 'W x + s (B A x + c)',
  parameters: [
    {
      key: kBias,
      trained: true,
      decays: false,
      shape: ({ outFeatures }) => [outFeatures],
      start: ({ linear: { outFeatures, weight } }) =>
        zeros([outFeatures], { dtype: masterDType(weight.dtype), device: weight.device }),
    },
  ],
  refuses: (init) => (typeof init === 'string' ? 'true or false' : null),
  update: (module, update) => ({ ...update, bias: mul(module.parameter(kBias), module.scale) }),
  mergedBias: (module) => {
    const { name, linear, scale } = module;
    if (linear.bias === null) {
      throw new ArgumentError(
        `${name}: an adapter with loraBias cannot be merged into a layer without a bias; keep it beside its base`,
      );
    }
    return add(linear.bias.to('f64'), mul(module.parameter(kBias).to('f64'), scale));
  },
};

export const lora = defineMethod({
  name: 'lora',
  title: 'LoRA: a trained pair of low rank beside each frozen weight',
  about:
    'What all others are compared with: of each weight, a change B A of rank r is learnt, B starting at 0. It needs more steps ' +
    'than the methods that start from the weights, and moves the model less than PiSSA does at the same loss ' +
    '([drift](studies.md#how-far-a-language-model-moves-from-its-base)). It costs two thin products a weight, and trains r ' +
    'numbers for each input and each output.',
  source: 'arXiv 2106.09685',
  since: '0.2.0',
  adapter: {},
  options: {
    /** Whether B has a bias of its own (default false). */
    loraBias: { help: 'give B a bias' },
  },
  starts: [uniform, random],
  variants: [plain, withBias],
  scaling: { option: null, divisor: (r) => r },
});

/** The first pair of plain LoRA. */
export function uniformPair(module: StartModule): LowRankPair {
  return { a: uniformA(module), b: zeroB(module) };
}

function uniformA(module: StartModule): Tensor {
  const { r, inFeatures } = module;
  return uniformWithin([r, inFeatures], 1 / Math.sqrt(inFeatures), module.seed('A'));
}

function uniformWithin(shape: readonly number[], bound: number, seed: number): Tensor {
  return rand(shape, { low: -bound, high: bound, seed });
}

function zeroB({ outFeatures, r }: StartModule): Tensor {
  return zeros([outFeatures, r]);
}
