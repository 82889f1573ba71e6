/**
 * PiSSA (Meng et al. 2024): with the top-r singular triplets of W, A = sqrt(S/s) V^T and B = U sqrt(S/s), so that s B A is
 * W's best rank-r part. The base is not changed: the frozen initial pair is subtracted from the adapted linear
 * (docs/decisions/pissa-on-the-untouched-base.md).
 */
import { randomizedSvds } from '../../ops/index.ts';
import { pairOfTriplets, tripletsOf } from '../leading_triplets.ts';
import { defineMethod, defineStart, type StartModule } from './method.ts';

type Value = 'pissa' | `pissa_niter_${number}`;

const kSpelling = /^pissa(?:_niter_([0-9]+))?$/;

/**
 * The initialisations `pissa`, with SVDs to convergence, and `pissa_niter_N`, with N power iterations. SVDs of many modules at
 * once are faster.
 */
const start = defineStart<Value>({
  shown: ['pissa', 'pissa_niter_N'],
  title: 'the top r singular triplets of W, to convergence or after N power iterations',
  accepts: (value): value is Value => typeof value === 'string' && kSpelling.test(value),
  fromWeight: true,
  pairs: (modules, value) => {
    const iterations = kSpelling.exec(value)?.[1];
    const niter = iterations === undefined ? 'converged' : Number(iterations);
    return randomizedSvds(modules.map(tripletsOf), { niter }).map((found, i) =>
      pairOfTriplets(found, modules[i] as StartModule),
    );
  },
});

export const pissa = defineMethod({
  name: 'pissa',
  title: 'PiSSA: LoRA that starts as the principal part of each weight',
  about:
    "The pair starts as the part of W that acts most, and the rest of W is what stays: gradients are larger than LoRA's from " +
    'the first step on, so that it learns in fewer steps, and moves further from the base. Take it for short runs ' +
    '([drift](studies.md#how-far-a-language-model-moves-from-its-base)). It costs a search for the leading singular vectors at ' +
    'the start (`pissa_niter_4` is quicker than `pissa`), and in a step twice the rank of LoRA in the forward pass; the file ' +
    'has [twice the rank](decisions/pissa-on-the-untouched-base.md).',
  differs:
    'it edits the base, so that its folder decomposes each weight again where it is loaded: with `pissa_niter_N` under another ' +
    'random seed it computes something else than was saved. A rank that is larger than the weight allows is lowered without a ' +
    'word; it is refused here',
  source: 'arXiv 2404.02948',
  since: '0.2.0',
  adapter: { initLoraWeights: 'pissa' },
  starts: [start],
});
