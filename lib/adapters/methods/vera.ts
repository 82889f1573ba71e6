/**
 * VeRA (Kopiczko et al. 2023): W' = W + diag(b) B diag(d) A, where all modules share the random, frozen A (r, largest in) and
 * B (largest out, r), of which each takes the first columns and rows. b starts as 0.
 */
import { full, mul, rand, reshape, slice, zeros } from '../../ops/index.ts';
import { number } from '../../options/kinds.ts';
import { defineMethod, type SharedContext, trainedTensor } from './method.ts';
import { floatKey, lowRankVariant } from './own_form.ts';

const kA = 'vera_A';
const kB = 'vera_B';
const kScaleB = 'vera_lambda_b';
const kScaleD = 'vera_lambda_d';

const largest = ({ modules }: SharedContext, size: 'inFeatures' | 'outFeatures'): number =>
  Math.max(...modules.map((module) => module[size]));
const rankIn = ({ settings }: SharedContext): number => settings.r as number;

/** Uniform values of kaiming_uniform with PyTorch's gain for ReLU, whose fan is the number of columns. */
function kaiming([rows, columns]: [number, number], seed: number) {
  const bound = Math.sqrt(6 / columns);
  return rand([rows, columns], { low: -bound, high: bound, seed });
}

const variant = lowRankVariant({
  peftType: 'VERA',
  inPeft: true,
  formula: 'W x + diag(b) B diag(d) A x; A and B are random, frozen and shared by all modules',
  keys: {
    bias: { only: 'none' },
    d_initial: floatKey('dInitial'),
    fan_in_fan_out: { option: 'fanInFanOut' },
    init_weights: { idle: true },
    projection_prng_key: { idle: 0 },
    save_projection: { written: true },
    vera_dropout: { option: 'loraDropout' },
  },
  tensors: () => [
    trainedTensor(kScaleB, ({ outFeatures }) => [outFeatures]),
    trainedTensor(kScaleD, ({ r }) => [r]),
  ],
  shared: [
    {
      key: kA,
      shape: (all) => [rankIn(all), largest(all, 'inFeatures')],
      start: (all) => kaiming([rankIn(all), largest(all, 'inFeatures')], all.seed(kA)),
    },
    {
      key: kB,
      shape: (all) => [largest(all, 'outFeatures'), rankIn(all)],
      start: (all) => kaiming([largest(all, 'outFeatures'), rankIn(all)], all.seed(kB)),
    },
  ],
  start: (modules, { dInitial }) =>
    modules.map(({ outFeatures, r }) => ({
      [kScaleB]: zeros([outFeatures]),
      [kScaleD]: full([r], dInitial as number),
    })),
  // The vectors alone are trained, so a rank beyond that of the matrix is of use.
  refuses: () => null,
  factors: ({ inFeatures, outFeatures, r, tensor }) => ({
    a: mul(slice(tensor(kA), 1, { stop: inFeatures }), reshape(tensor(kScaleD), [r, 1])),
    b: mul(slice(tensor(kB), 0, { stop: outFeatures }), reshape(tensor(kScaleB), [outFeatures, 1])),
  }),
});

export const vera = defineMethod({
  name: 'vera',
  title: 'VeRA: two trained vectors a module around random matrices that all modules share',
  about:
    'Two vectors a module are trained, around two random matrices that all modules share: few numbers, at a large rank and ' +
    "about ten times LoRA's learning rate. Take it for many adapters of one base. A step costs what LoRA of that rank does. The " +
    'matrices are always saved.',
  differs:
    "its folder may lack the random matrices (`save_projection` false), which are then drawn by PyTorch's generator; such a " +
    'folder is refused here',
  source: 'arXiv 2310.11454',
  since: '0.2.0',
  adapter: { peftType: 'VERA', r: 256 },
  options: {
    /** First value of VeRA's vector d. Default 0.1. */
    dInitial: number({ default: 0.1, help: 'first value of the vector d between A and B' }),
  },
  variants: [variant],
});
