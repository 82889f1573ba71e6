/** PEFT's Gaussian initialisation of LoRA: A ~ N(0, 1/r^2), whatever the width, and B = 0. */
import { mul, randn, zeros } from '../../ops/index.ts';
import { defineMethod, defineNamedStart } from './method.ts';

const start = defineNamedStart('gaussian', {
  title: 'A normal with deviation 1/r, B zero',
  fromWeight: false,
  pairs: (modules) =>
    modules.map(({ r, inFeatures, outFeatures, seed }) => ({
      a: mul(randn([r, inFeatures], { seed: seed('A') }), 1 / r),
      b: zeros([outFeatures, r]),
    })),
});

export const gaussian = defineMethod({
  name: 'gaussian',
  title: 'LoRA that starts from normal values of A',
  about:
    "Another scale of A than LoRA's own: its entries do not depend on the width of the weight. Take it to repeat a run of " +
    "PEFT's that used it. It costs nothing.",
  source: null,
  since: '0.2.0',
  adapter: { initLoraWeights: 'gaussian' },
  starts: [start],
});
