/**
 * MiLoRA (Wang et al. 2024): PiSSA with the last r singular triplets of W in the place of the first, so that the principal part stays
 * as it is: B = U sqrt(S/s) and A = sqrt(S/s) V^T.
 */
import { div, mul, reshape, slice, sqrt, svd } from '../../ops/index.ts';
import { defineMethod, defineStart } from './method.ts';

const start = defineStart<'milora'>({
  shown: ['milora'],
  title: 'the last r singular triplets of W',
  accepts: (value) => value === 'milora',
  fromWeight: true,
  pairs: (modules) =>
    modules.map(({ weight, r, scale }) => {
      const { u, s, vt } = svd(weight.to('f32'));
      const root = sqrt(div(slice(s, 0, { start: -r }), scale)); // (r)
      return {
        a: mul(slice(vt, 0, { start: -r }), reshape(root, [r, 1])),
        b: mul(slice(u, 1, { start: -r }), root),
      };
    }),
});

export const milora = defineMethod({
  name: 'milora',
  title: 'MiLoRA: LoRA that starts as the minor part of each weight',
  about:
    'The reverse of PiSSA: what is trained is the part of W that matters least, so that what the base knows stays longer. Each ' +
    'weight is decomposed completely, which takes seconds for a large one, once at the start.',
  source: 'arXiv 2406.09044',
  since: '0.2.0',
  adapter: { initLoraWeights: 'milora' },
  starts: [start],
});
