/**
 * The optimiser of LoRA-FA (Zhang et al. 2023) as PEFT computes it: A is not trained, and the gradient of B is replaced by
 *
 *     g (A A^T + 1e-8 I)^-1 / s^2,
 *
 * with which the change of s B A comes closest to a step of the whole weight. It enters the moments of AdamW in the older form of
 * transformers, which adds eps to sqrt(v) before the bias correction and applies weight decay after the update:
 *
 *     p -= lr sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + eps),  then  p -= lr wd p.
 */
import type { FactorOfPair } from '../nn/adapter_hook.ts';
import { add_, matmul, mul } from '../ops/index.ts';
import { noGrad, scope, type Tensor, unscoped } from '../tensor.ts';
import { AdamW } from './adamw.ts';
import { gramInverse } from './gram_inverse.ts';
import type { Slot } from './optimizer.ts';

/** The number on the diagonal of A A^T. */
const kDelta = 1e-8;

/** The preconditioner of one B, and the version of A that it was computed from. */
interface Preconditioner {
  readonly tensor: Tensor; // (r,r)
  readonly version: number;
}

/** The optimiser of LoRA-FA: see the head of this file. Give it no A; parameters that are no B have their gradients as they are. */
export class LoraFa extends AdamW {
  /** One for each B: A stays as it is, so that each is computed once. */
  private readonly preconditioners = new Map<Slot, Preconditioner>();
  private rate = 0;

  /** Null: eps and the decay are arguments of ops that change from step to step. */
  override get recordingKey(): null {
    return null;
  }

  override dispose(): void {
    super.dispose();
    for (const { tensor } of this.preconditioners.values()) tensor.dispose();
    this.preconditioners.clear();
  }

  protected override prepare(active: readonly Slot[], learningRate: number): void {
    super.prepare(active, learningRate);
    this.rate = learningRate;
  }

  protected override updateAll(active: readonly Slot[], coefficient: Tensor | null): void {
    const { eps, beta2 } = this.options;
    scope(() =>
      noGrad(() => {
        for (const steps of new Set(active.map((slot) => slot.steps))) {
          const slots = active.filter((slot) => slot.steps === steps);
          // The same as eps before the bias correction of sqrt(v).
          const corrected = eps / Math.sqrt(1 - beta2 ** steps);
          this.adamw(slots, { coefficient, eps: corrected, decays: false });
        }
        for (const { tensor, weightDecay, learningRateScale } of active) {
          if (weightDecay === 0) continue;
          add_(tensor, tensor, -this.rate * learningRateScale * weightDecay);
        }
      }),
    );
  }

  protected override gradientOf(slot: Slot): Tensor {
    const gradient = super.gradientOf(slot);
    return slot.factor?.role === 'b' ? matmul(gradient, this.preconditionerOf(slot)) : gradient;
  }

  private preconditionerOf(slot: Slot): Tensor {
    const { a, scale } = slot.factor as FactorOfPair;
    const kept = this.preconditioners.get(slot);
    if (kept?.version === a.version) return kept.tensor;
    kept?.tensor.dispose();
    const tensor = unscoped(() => scope(() => mul(gramInverse(a, 'a', kDelta), 1 / scale ** 2)));
    this.preconditioners.set(slot, { tensor, version: a.version });
    return tensor;
  }
}
