/** The lists of built-in terms. A new one is a file beside this one and a line here. */
import { classifierConsistency, consistency } from './consistency.ts';
import { classifierDiversity, diversity } from './diversity.ts';
import { classifierSvd, svd } from './svd.ts';

/** Terms of models with a head over a vocabulary: causal language models and encoder-decoders. */
export const kLanguageModelTerms = [consistency, diversity, svd] as const;
/** Terms of models with a classification or regression head. */
export const kClassifierTerms = [
  classifierConsistency,
  classifierDiversity,
  classifierSvd,
] as const;
