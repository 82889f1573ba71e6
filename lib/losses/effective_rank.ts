/** The effective rank of logits, of which only matrices of the order of the hidden states are kept. */
import { gram, gramAdd, gramSpectrum } from '../ops/linalg.ts';
import { noGrad, type Tensor, unscoped } from '../tensor.ts';
import { HeadGram } from './head_loss.ts';

/** f64 matrices (C,C) that exist at one time while {@link gramSpectrum} runs, beside its operands. */
const kSpectrumMatrices = 5;

/** The effective rank exp(entropy of sigma / sum(sigma)) of singular values sigma; 0 for a zero matrix. */
export function effectiveRankOf(singularValues: ArrayLike<number>): number {
  let sum = 0;
  for (let i = 0; i < singularValues.length; i++) sum += singularValues[i] as number;
  if (!(sum > 0)) return 0;
  let entropy = 0;
  for (let i = 0; i < singularValues.length; i++) {
    const share = (singularValues[i] as number) / sum;
    if (share > 0) entropy -= share * Math.log(share);
  }
  return Math.exp(entropy);
}

/**
 * Effective rank of the logits of any number of rows, of which only H^T H (C, C) is kept. Soft-capping is ignored: the rank is
 * that of the linear logits.
 */
export class EffectiveRank {
  #sum: Tensor | null = null;

  /** Bytes of the matrices of an evaluation at its end: H^T H, the head's Gram matrix, and those that the spectrum is made of. */
  static bytes(head: Tensor): number {
    const { kept, making } = HeadGram.bytes(head);
    return kept + Math.max(making, (1 + kSpectrumMatrices) * kept);
  }

  /**
   * Adds rows.
   * @param hidden (M, C), any M
   */
  add(hidden: Tensor): void {
    noGrad(() => {
      if (this.#sum) gramAdd(this.#sum, hidden);
      else this.#sum = unscoped(() => gram(hidden));
    });
  }

  /**
   * Computes exp(entropy of sigma / sum(sigma)) for the singular values sigma of all rows' logits.
   * @param headGram of the head that makes the logits
   */
  async value(headGram: HeadGram): Promise<number> {
    if (!this.#sum) return 0;
    const spectrum = unscoped(() => gramSpectrum(this.#sum as Tensor, headGram.get()));
    try {
      return effectiveRankOf((await spectrum.data()) as Float64Array);
    } finally {
      spectrum.dispose();
    }
  }

  /** Frees its tensors. */
  dispose(): void {
    this.#sum?.dispose();
    this.#sum = null;
  }
}
