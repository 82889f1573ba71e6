/** Warnings about shapes of a classifier's outputs for which its regularizers are undefined or clamped. N examples, D outputs. */
import { clampSvdTopK } from '../nlu_terms.ts';
import type { TermNote } from '../term.ts';

/** A warning for shapes that have no covariances and one singular value; null for others. */
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

/** A warning for shapes with fewer singular values than are to be summed; null for others. */
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
