/** The lists of built-in terms. A new one is a file beside this one, and its place in a list and in the list's type. */
import { classifierConsistency, consistency } from './consistency.ts';
import { classifierDiversity, diversity } from './diversity.ts';
import { classifierSvd, svd } from './svd.ts';

// Their types are named: in a declaration file the doc comments of inferred ones would be lost.

/** Terms of models with a head over a vocabulary: causal language models and encoder-decoders. */
export const kLanguageModelTerms: readonly [typeof consistency, typeof diversity, typeof svd] = [
  consistency,
  diversity,
  svd,
];

/** Terms of models with a classification or regression head. */
export const kClassifierTerms: readonly [
  typeof classifierConsistency,
  typeof classifierDiversity,
  typeof classifierSvd,
] = [classifierConsistency, classifierDiversity, classifierSvd];
