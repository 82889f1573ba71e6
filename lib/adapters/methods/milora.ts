/**
 * MiLoRA (Wang et al. 2024): PiSSA with the last r singular triplets of W in the place of the first, so that the principal part stays
 * as it is: B = U sqrt(S/s) and A = sqrt(S/s) V^T.
 */
import { trailingSvds } from '../../ops/index.ts';
import { pairOfTriplets } from '../leading_triplets.ts';
import { defineMethod, defineNamedStart, type StartModule } from './method.ts';

const start = defineNamedStart('milora', {
  title: 'the last r singular triplets of W',
  fromWeight: true,
  pairs: (modules) =>
    trailingSvds(
      modules.map(({ weight: a, r: rank, seed }) => ({ a, rank, seed: seed('svd') })),
    ).map((found, i) => pairOfTriplets(found, modules[i] as StartModule)),
});

export const milora = defineMethod({
  name: 'milora',
  title: 'MiLoRA: LoRA that starts as the minor part of each weight',
  about:
    'The reverse of PiSSA: what is trained is the part of W that matters least, so that what the base knows stays longer. The ' +
    "smallest singular vectors take a few times as long as PiSSA's largest.",
  source: 'arXiv 2406.09044',
  since: '0.2.0',
  adapter: { initLoraWeights: 'milora' },
  starts: [start],
});
