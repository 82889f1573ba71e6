/** The diversity term: keeps the predictions from collapsing onto a few outputs (BA-LoRA, arXiv 2408.04556). */
import { number, whole } from '../../options/kinds.ts';
import { nluDiversityLoss } from '../nlu_terms.ts';
import { diversityLoss } from '../plain.ts';
import type { TermDefinition } from '../term.ts';
import { noteOnShape } from './classifier_notes.ts';
import { growingTerm, growthOptions } from './growth.ts';

const weight = {
  /** Weight l2 (default 0; the `balora` preset sets .005, for a classifier .03). */
  diversityWeight: number({
    least: 0,
    default: 0,
    help: 'weight l2 of the entropy of the predictions',
  }),
};
const topK = {
  /** K: the largest logits of a row that the entropy is taken over; 0: the whole vocabulary. Default 20. */
  entropyTopK: whole({
    least: 0,
    default: 20,
    help: 'number of logits of a row in the entropy; 0: all',
  }),
};
// Named types: in a declaration file the doc comments of spread properties would be lost.
const classifierOptions: typeof weight & typeof growthOptions = { ...weight, ...growthOptions };
const options: typeof classifierOptions & typeof topK = { ...classifierOptions, ...topK };

/** L_DR = -mean H(pi), pi the softmax over the K largest logits of a row, over the rows of the regularizers. */
export const diversity: TermDefinition<typeof options> = {
  key: 'diversity',
  options,
  create: (given) => ({
    ...growingTerm('diversity', given.diversityWeight, given),
    value: ({ logits }) => diversityLoss(logits(), { topK: given.entropyTopK }),
    fused: { pass: 'entropy', topK: given.entropyTopK },
  }),
};

/** L_DR of a classifier: the squared covariances between its outputs, see {@link nluDiversityLoss}. */
export const classifierDiversity: TermDefinition<typeof classifierOptions> = {
  key: 'diversity',
  options: classifierOptions,
  create: (given) => ({
    ...growingTerm('diversity', given.diversityWeight, given),
    value: ({ logits }) => nluDiversityLoss(logits()),
    noteOn: noteOnShape,
  }),
};
