/** The SVD term: concentrates the logits on their leading singular directions (BA-LoRA, arXiv 2408.04556). */
import { choice, number, whole } from '../../options/kinds.ts';
import { nluSvdLoss } from '../nlu_terms.ts';
import { svdLoss } from '../plain.ts';
import type { TermDefinition } from '../term.ts';
import { noteOnShape, noteOnTopK } from './classifier_notes.ts';
import { growingTerm, growthOptions } from './growth.ts';

const own = {
  /** Weight l3 (default 0; the `balora` preset sets .005, for a classifier .03). */
  svdWeight: number({ least: 0, default: 0, help: 'l3 of the singular-value term' }),
  /** k: the number of largest singular values that are summed. Default 10, for a classifier 5. */
  svdTopK: whole({
    least: 1,
    default: ({ task }) => (task === 'sequence-classification' ? 5 : 10),
    help: 'singular values in the sum',
  }),
};
const norm = {
  /** The denominator. Default `frobenius`. */
  svdNorm: choice({
    choices: ['frobenius', 'nuclear'],
    default: 'frobenius',
    help: 'what the sum is divided by',
  }),
};
// Named types: in a declaration file the doc comments of spread properties would be lost.
const classifierOptions: typeof own & typeof growthOptions = { ...own, ...growthOptions };
const options: typeof classifierOptions & typeof norm = { ...classifierOptions, ...norm };

/** L_SVDR = -(sum of the k largest singular values of the rows' logits) / their norm. */
export const svd: TermDefinition<typeof options> = {
  key: 'svd',
  options,
  create: ({ svdTopK: k, svdNorm: norm, ...given }) => ({
    ...growingTerm('svd', given.svdWeight, given),
    value: ({ logits }) => svdLoss(logits(), { k, norm }),
    fused: { pass: 'singularValues', k, norm },
  }),
};

/** L_SVDR of a classifier, with the sum of all singular values as the denominator, see {@link nluSvdLoss}. */
export const classifierSvd: TermDefinition<typeof classifierOptions> = {
  key: 'svd',
  options: classifierOptions,
  create: ({ svdTopK: k, ...given }) => ({
    ...growingTerm('svd', given.svdWeight, given),
    value: ({ logits }) => nluSvdLoss(logits(), { k }),
    noteOn: (shape) => noteOnShape(shape) ?? noteOnTopK(k, shape),
  }),
};
