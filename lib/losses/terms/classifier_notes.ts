/** Shapes of a classifier's outputs on which its regularizers are not what their formulas say. N examples, D outputs. */
import { clampSvdTopK } from '../nlu_terms.ts';
import type { TermNote } from '../term.ts';

/** Where neither covariances nor singular values say anything; null elsewhere. */
export function noteOnShape([examples, outputs]: readonly [number, number]): TermNote | null {
  if (outputs === 1) {
    return {
      code: 'nlu_terms_undefined',
      message:
        'the head has one output, so the diversity and singular-value terms are undefined: they are skipped',
    };
  }
  if (examples > 1) return null;
  return {
    code: 'nlu_single_example',
    message:
      'a micro-batch of one example has no covariance and one singular value: the diversity and singular-value terms are skipped for it',
  };
}

/** Where fewer singular values are summed than asked for; null elsewhere. */
export function noteOnTopK(k: number, shape: readonly [number, number]): TermNote | null {
  const used = clampSvdTopK(k, shape);
  if (used === 0 || used >= k) return null;
  const [examples, outputs] = shape;
  return {
    code: 'nlu_svd_clamped',
    message:
      `svdTopK ${k} is clamped to ${used} = min(${examples} examples, ${outputs} outputs) - 1: ` +
      'with every singular value in the sum the term is the constant -1, without gradient',
  };
}
