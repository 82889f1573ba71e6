/**
 * AdamW with Riemannian preconditioning of low-rank pairs (Zhang and Pilanci, 2024), as PEFT computes it: before they enter the
 * moments, the gradient of A is multiplied by (B^T B + d I)^-1, that of B by (A A^T + d I)^-1.
 */
import { matmul } from '../ops/index.ts';
import type { Tensor } from '../tensor.ts';
import { AdamW, type AdamWOptions } from './adamw.ts';
import { gramInverse } from './gram_inverse.ts';
import type { ParameterGroup, Slot } from './optimizer.ts';

/** Settings of {@link RiemannianAdamW}. */
export interface RiemannianOptions extends AdamWOptions {
  /** The number d on the diagonals. */
  reg?: number; // 1e-2
}

/** AdamW with the gradients of A and B preconditioned by the other factor; other parameters are updated as by {@link AdamW}. */
export class RiemannianAdamW extends AdamW {
  private readonly reg: number;

  constructor(
    groups: readonly ParameterGroup[],
    { reg = 1e-2, ...options }: RiemannianOptions = {},
  ) {
    super(groups, options);
    this.reg = reg;
  }

  /** Null: the decomposition of a Gram matrix is not recorded. */
  override get recordingKey(): null {
    return null;
  }

  protected override gradientOf(slot: Slot): Tensor {
    const gradient = super.gradientOf(slot);
    const { factor } = slot;
    if (factor === undefined) return gradient;
    return factor.role === 'a'
      ? matmul(gramInverse(factor.b, 'b', this.reg), gradient)
      : matmul(gradient, gramInverse(factor.a, 'a', this.reg));
  }
}
