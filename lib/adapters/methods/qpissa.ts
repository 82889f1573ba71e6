/**
 * QPiSSA (Meng et al. 2024, section 4): PiSSA whose base is quantised without its principal part, which the pair keeps in full precision.
 * The rest has a narrower spectrum than W, so that the codes lose less of it.
 */
import { defineMethod, defineStart } from './method.ts';
import { qpissaPairs, stepsOf } from './quantized_start.ts';

type Value = 'qpissa' | `qpissa_iter_${number}`;

const start = defineStart<Value>({
  shown: ['qpissa', 'qpissa_iter_N'],
  title: 'the top r singular triplets of W, and the base of the adapter the NF4 codes of the rest',
  accepts: (value): value is Value => stepsOf('qpissa', value) !== null,
  fromWeight: true,
  quantizes: () => 'first',
  pairs: (modules, value) => qpissaPairs(modules, stepsOf('qpissa', value) as number),
});

export const qpissa = defineMethod({
  name: 'qpissa',
  title: 'QPiSSA: PiSSA on a base in 4 bits that is quantised without its principal part',
  about:
    'The pair starts as the part of W that acts most, in full precision, and what stays of W is kept as NF4 codes, 4.5 bits a weight: less is ' +
    "lost than by quantising W, since its largest part is not in the codes. Take it where the base must be small (on a CPU, in the dtype of the files, where W itself takes no memory) and PiSSA's start is wanted; " +
    '`qpissa_iter_5` goes over pair and codes five times, for a base that is nearer to W. The teacher is the quantised model with the first ' +
    'pair. Give it [the unquantised model](adapters.md#a-base-in-4-bits); only the adapted weights are quantised. The start costs what ' +
    "PiSSA's costs, for each time.",
  differs:
    "there it is none of its own: the authors' script writes a residual model, which is quantised when it is loaded",
  source: 'arXiv 2404.02948',
  since: '0.2.0',
  adapter: { initLoraWeights: 'qpissa' },
  starts: [start],
});
