/**
 * DoRA (Liu et al. 2024): y = m / ||W + s B A|| (W + s B A) x, with the norm of each row; m starts as these norms, and backward
 * treats the norm as a constant.
 */
import { div, mul, reshape, rowNorm, sqrt, sum } from '../../ops/index.ts';
import { plain } from './lora.ts';
import { defineMethod, type Variant } from './method.ts';

const kMagnitude = 'lora_magnitude_vector';

const variant: Variant = {
  ...plain,
  option: 'useDora',
  formula:
    'm / ||W + s B A|| (W + s B A) x by rows; m is trained, the norm is held constant in the gradient',
  parameters: [
    {
      key: kMagnitude,
      trained: true,
      alsoReadAs: [`${kMagnitude}.weight`],
      decays: true,
      shape: ({ outFeatures }) => [outFeatures],
      start: ({ linear, parts }) => rowNorm(linear.weight, parts),
    },
  ],
  derives: {
    norm: ({ linear, parts }) => rowNorm(linear.weight, parts), // (out)
  },
  update: (module, update) => ({
    ...update,
    outputScale: div(module.parameter(kMagnitude), module.derived('norm')),
  }),
  // The magnitude's gradient depends on the whole sum, pair included: lower precision of the pair shows in the loss.
  pairIsChange: false,
  mergedWeight: (module, base) => {
    const exact = plain.mergedWeight(module, base);
    const norm = sqrt(sum(mul(exact, exact), { axis: 1 }));
    const factor = div(module.parameter(kMagnitude).to('f64'), norm);
    return mul(exact, reshape(factor, [factor.size, 1]));
  },
  residualObstacle: 'DoRA: its norm belongs to the whole weight',
};

export const dora = defineMethod({
  name: 'dora',
  title: 'DoRA: LoRA on the direction of each row, and a trained length',
  about:
    'Each row of the weight has a trained length, and the pair changes its direction alone. Take it where LoRA of a small rank ' +
    'falls short. It trains one more number for each output, and computes the norms of all rows once a step, in a pass over W ' +
    'that [never builds W + s B A](adapters.md#what-an-adapter-is-made-of). It cannot be written as a plain LoRA exactly; ' +
    '`balora convert` truncates it.',
  source: 'arXiv 2402.09353',
  since: '0.2.0',
  adapter: { useDora: true },
  options: {
    /** Whether to use DoRA: the rows of W + s B A are scaled to a trained length (default false). */
    useDora: { help: 'DoRA: train the length of each row apart from its direction' },
  },
  variants: [variant],
});
