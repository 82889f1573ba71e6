/** The kinds of the options of labels, which data and classifiers have in common. */
import { kCall, oneOf, orNull, wholeNumber } from './call.ts';

/** Largest number of outputs of a head: more than any task has. Each label of a new head has a row of weights, and a name where it is saved. */
export const kMaxLabels = 2 ** 20;

/** The kinds of the options. */
export const labelTable = {
  problemType: oneOf(['single_label_classification', 'regression', 'multi_label_classification']),
  numLabels: wholeNumber({ least: 1, most: kMaxLabels }),
  labelNames: orNull(kCall.texts),
} as const;
