/**
 * RandLoRA (Albert et al. 2025): the update is a sum over n = ceil(min(in,out) / r) random products B_i A of rank r, which together have
 * full rank; A and all B_i are frozen and shared by all modules. Of each product a diagonal on either side is trained, lambda (r,n) and
 * gamma (n, min(in,out)). The order in which PEFT joins the n r rows of A and the columns of B is that of its files: the rows go by
 * rank, the columns by base.
 */
import {
  contiguous,
  full,
  less,
  matmul,
  mul,
  rand,
  reshape,
  slice,
  where,
  zeros,
} from '../../ops/index.ts';
import type { Tensor } from '../../tensor.ts';
import {
  defineMethod,
  type ModuleSizes,
  type Settings,
  type SharedContext,
  trainedTensor,
} from './method.ts';
import { denseVariant, refusesRank } from './own_form.ts';

const kA = 'randlora_A';
const kB = 'randlora_B';
const kLambda = 'randlora_lambda';
const kGamma = 'randlora_gamma';

const rankOf = (settings: Settings): number => settings.r as number;
const smaller = ({ inFeatures, outFeatures }: ModuleSizes): number =>
  Math.min(inFeatures, outFeatures);
const basesOf = (sizes: ModuleSizes): number => Math.ceil(smaller(sizes) / sizes.r);

/** The largest sizes of all modules: that of A's rows, and the longer of both. */
function extents({ modules }: SharedContext): { short: number; long: number } {
  const inFeatures = Math.max(...modules.map((module) => module.inFeatures));
  const outFeatures = Math.max(...modules.map((module) => module.outFeatures));
  return { short: Math.min(inFeatures, outFeatures), long: Math.max(inFeatures, outFeatures) };
}

function shapeOfA(all: SharedContext): number[] {
  return [rankOf(all.settings), 1, extents(all).short];
}

function shapeOfB(all: SharedContext): number[] {
  const { short, long } = extents(all);
  const r = rankOf(all.settings);
  return [long, Math.ceil(short / r), r];
}

/** Random values of deviation 1: uniform, or a few of equal size and random sign among zeros. */
function random(shape: number[], seed: number, all: SharedContext): Tensor {
  const { randloraSparse, randloraVerySparse } = all.settings;
  if (randloraSparse !== true && randloraVerySparse !== true) {
    return rand(shape, { low: -Math.sqrt(3), high: Math.sqrt(3), seed });
  }
  const every = randloraVerySparse === true ? Math.sqrt(extents(all).short) : 3;
  const uniform = rand(shape, { seed });
  const positive = where(less(uniform, 1 / every), Math.sqrt(every), zeros(shape));
  return where(less(uniform, 0.5 / every), -Math.sqrt(every), positive);
}

const variant = denseVariant({
  peftType: 'RANDLORA',
  inPeft: true,
  formula:
    'W x + s sum of B_i diag(lambda_i) A diag(gamma_i) x over enough bases for full rank; A and B_i are random, frozen and shared',
  keys: {
    bias: { only: 'none' },
    fan_in_fan_out: { option: 'fanInFanOut' },
    init_weights: { idle: true },
    projection_prng_key: { idle: 0 },
    randlora_alpha: { option: 'loraAlpha' },
    randlora_dropout: { option: 'loraDropout' },
    save_projection: { written: true },
    sparse: { option: 'randloraSparse' },
    very_sparse: { option: 'randloraVerySparse' },
  },
  tensors: () => [
    trainedTensor(kGamma, (sizes) => [basesOf(sizes), smaller(sizes)]),
    trainedTensor(kLambda, (sizes) => [sizes.r, basesOf(sizes)]),
  ],
  shared: [
    { key: kA, shape: shapeOfA, start: (all) => random(shapeOfA(all), all.seed(kA), all) },
    { key: kB, shape: shapeOfB, start: (all) => random(shapeOfB(all), all.seed(kB), all) },
  ],
  start: (modules) =>
    modules.map((module) => {
      const [n, least] = [basesOf(module), smaller(module)];
      return {
        [kLambda]: zeros([module.r, n]),
        [kGamma]: full([n, least], 1 / Math.max(n, least)),
      };
    }),
  refuses: refusesRank,
  change: (module) => {
    const { inFeatures, outFeatures, r, scale, tensor, constant } = module;
    const [n, least, most] = [basesOf(module), smaller(module), Math.max(inFeatures, outFeatures)];
    const lambda = reshape(mul(tensor(kLambda), scale), [r, n, 1]);
    const scaled = mul(mul(lambda, slice(tensor(kA), 2, { stop: least })), tensor(kGamma)); // (r, n, min)
    const rows = reshape(scaled, [r * n, least]);
    const columns = constant(`bases ${most} ${n}`, () => {
      const part = slice(slice(tensor(kB), 0, { stop: most }), 1, { stop: n });
      return reshape(contiguous(part), [most, n * r]);
    });
    return least === inFeatures
      ? matmul(columns, rows)
      : matmul(rows, columns, { transposeA: true, transposeB: true });
  },
});

export const randlora = defineMethod({
  name: 'randlora',
  title: 'RandLoRA: trained diagonals around enough random bases for an update of full rank',
  about:
    'Random bases are joined to an update of full rank; what is trained are diagonals on both sides of each base. Take it where ' +
    "a low rank falls short. It costs another product of the size of the base's and memory for the change of each weight, and " +
    'is unstable at high learning rates. The bases are saved once.',
  differs:
    'its file holds the bases once and again for every module, 2.1 GB for a model of 3 billion weights, and they are drawn and ' +
    'divided by their deviation in 16 bits. The order in which it joins their rows and columns makes its product another one ' +
    "than the paper's sum over bases; it is followed here, so that files mean the same",
  source: 'arXiv 2502.00987',
  since: '0.2.0',
  adapter: { peftType: 'RANDLORA', r: 32, loraAlpha: 640 },
  options: {
    /** For RandLoRA: whether the bases are -1, 0 and 1 with shares of 1/6, 2/3 and 1/6, scaled to deviation 1. Default false. */
    randloraSparse: { help: 'bases of -1, 0 and 1, two thirds 0' },
    /** For RandLoRA: as `randloraSparse`, with a share of 1/sqrt(D) that is not 0, D the size of A. Default false. */
    randloraVerySparse: { help: 'bases of -1, 0 and 1, all but 1/sqrt(D) of them 0' },
  },
  variants: [variant],
});
