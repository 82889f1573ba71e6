/** AdamW: Adam with decoupled weight decay (Loshchilov and Hutter, 2019), in torch's order of operations. */
import { adamwStep } from '../ops/index.ts';
import type { Tensor } from '../tensor.ts';
import {
  type MomentShapes,
  Optimizer,
  type ParameterGroup,
  type Slot,
  type Update,
} from './optimizer.ts';

/** Settings of {@link AdamW} in torch's names. */
export interface AdamWOptions {
  beta1?: number; // 0.9
  beta2?: number; // 0.999
  eps?: number; // 1e-8
  weightDecay?: number; // 0
}

export const adamwMoments = (shape: readonly number[]): MomentShapes => ({
  exp_avg: shape,
  exp_avg_sq: shape,
});

/** p -= lr wd p, then p -= lr m_hat / (sqrt(v_hat) + eps). */
export class AdamW extends Optimizer {
  private readonly options: Required<Omit<AdamWOptions, 'weightDecay'>>;

  constructor(groups: readonly ParameterGroup[], options: AdamWOptions = {}) {
    const { beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weightDecay = 0 } = options;
    super(groups, weightDecay, adamwMoments);
    this.options = { beta1, beta2, eps };
  }

  protected override update(
    slot: Slot,
    grad: Tensor,
    { learningRate: lr, coefficient }: Update,
  ): void {
    const { exp_avg: m, exp_avg_sq: v } = slot.moments as { exp_avg: Tensor; exp_avg_sq: Tensor };
    const { beta1, beta2, eps } = this.options;
    const { steps: step, weightDecay } = slot;
    const betas = [beta1, beta2] as const;
    adamwStep(slot.tensor, grad, { m, v, step, lr, betas, eps, weightDecay, coefficient });
  }
}
