/**
 * HiRA (Huang et al. 2025): W' = W * (1 + B A), elementwise, with A (r,in) and B (out,r), which starts as 0. The update W * (B A) has full
 * rank. As in PEFT there is no alpha.
 */
import { matmul, mul, rand, zeros } from '../../ops/index.ts';
import { defineMethod, trainedTensor } from './method.ts';
import { denseVariant, refusesRank, withWeight } from './own_form.ts';

const kA = 'hira_A';
const kB = 'hira_B';

const variant = denseVariant({
  peftType: 'HIRA',
  inPeft: true,
  formula: '(W * (1 + B A)) x, with an elementwise product',
  keys: {
    exclude_modules: { option: 'excludeModules' },
    fan_in_fan_out: { option: 'fanInFanOut' },
    hira_dropout: { option: 'loraDropout' },
    init_weights: { idle: true },
    rank_pattern: { option: 'rankPattern' },
  },
  tensors: () => [
    trainedTensor(kA, ({ r, inFeatures }) => [r, inFeatures]),
    trainedTensor(kB, ({ r, outFeatures }) => [outFeatures, r]),
  ],
  start: (modules) =>
    modules.map((module) => {
      const { r, inFeatures, outFeatures } = module;
      const bound = 1 / Math.sqrt(inFeatures);
      const a = rand([r, inFeatures], { low: -bound, high: bound, seed: module.seed('A') });
      return { [kA]: a, [kB]: zeros([outFeatures, r]) };
    }),
  refuses: refusesRank,
  change: ({ weight, tensor }) =>
    withWeight(weight, matmul(tensor(kB), tensor(kA)), { product: mul, adjoint: mul }),
});

export const hira = defineMethod({
  name: 'hira',
  title: 'HiRA: each weight is multiplied elementwise by 1 + B A',
  about:
    "Each weight is multiplied by 1 + B A, so that its change has full rank with LoRA's number of parameters. Take it where a " +
    "low rank falls short. It costs another product of the size of the base's and memory for the change of each weight. There " +
    'is no alpha.',
  differs: 'its `get_delta_weight` returns B A, which is not the change of the weight',
  source: 'ICLR 2025',
  since: '0.2.0',
  adapter: { peftType: 'HIRA', r: 32 },
  variants: [variant],
});
