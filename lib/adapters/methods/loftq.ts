/**
 * LoftQ (Li et al. 2023): the base is quantised, and the pair starts as the best approximation of what that loses of W; quantising W less
 * that pair and approximating again brings both nearer to W.
 */
import { defineMethod, defineStart } from './method.ts';
import { loftqPairs, stepsOf } from './quantized_start.ts';

type Value = 'loftq' | `loftq_iter_${number}`;

const start = defineStart<Value>({
  shown: ['loftq', 'loftq_iter_N'],
  title:
    'the top r singular triplets of what NF4 codes lose of W, and the base of the adapter these codes',
  accepts: (value): value is Value => stepsOf('loftq', value) !== null,
  fromWeight: true,
  quantizes: (value) => (stepsOf('loftq', value) === 1 ? 'nothing' : 'own'),
  pairs: (modules, value) => loftqPairs(modules, stepsOf('loftq', value) as number),
});

export const loftq = defineMethod({
  name: 'loftq',
  title: 'LoftQ: LoRA on a base in 4 bits that starts as what the codes lose of each weight',
  about:
    'The base of the adapter is W as NF4 codes, 4.5 bits a weight, and the pair starts as the best approximation of what these lose, so that ' +
    'the quantised model begins nearer to the original one than with plain LoRA. Take it where the base must be small (on a CPU, in the dtype of the files, where W itself takes no memory) and its loss is seen; ' +
    '`loftq_iter_5`, or `loftqConfig: { loftqIter: 5 }`, quantises W less the pair and approximates again, five times in all: nearer still by ' +
    'this measure, and not always better to train. The teacher is the quantised model with the first pair. Give it ' +
    '[the unquantised model](adapters.md#a-base-in-4-bits); only the adapted weights are quantised.',
  differs:
    'it needs CUDA; its pair is right only where alpha is the rank, since it leaves out the scale; its folder loads on the original base only ' +
    'by quantising again; other widths than 4 bits are refused here',
  source: 'arXiv 2310.08659',
  since: '0.2.0',
  adapter: { initLoraWeights: 'loftq' },
  starts: [start],
});
