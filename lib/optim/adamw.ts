/** AdamW: Adam with decoupled weight decay (Loshchilov and Hutter, 2019), in torch's order of operations. */
import { adamwRate, adamwSteps, copy_, zeros } from '../ops/index.ts';
import { type CallTable, checkCall, finiteNumber } from '../options/call.ts';
import { noGrad, scope, type Tensor, tensor, unscoped } from '../tensor.ts';
import { type MomentShapes, Optimizer, type ParameterGroup, type Slot } from './optimizer.ts';

/** Settings of {@link AdamW} in torch's names. */
export interface AdamWOptions {
  beta1?: number; // 0.9
  beta2?: number; // 0.999
  eps?: number; // 1e-8
  weightDecay?: number; // 0
}

const kShare = finiteNumber({ least: 0 });
const kTable: CallTable<AdamWOptions> = {
  ...{ beta1: kShare, beta2: kShare, eps: kShare, weightDecay: kShare },
};

interface AdamwState {
  exp_avg: Tensor;
  exp_avg_sq: Tensor;
}

export const adamwMoments = (shape: readonly number[]): MomentShapes => ({
  exp_avg: shape,
  exp_avg_sq: shape,
});

/** AdamW: p -= lr wd p, then p -= lr m_hat / (sqrt(v_hat) + eps). */
export class AdamW extends Optimizer {
  protected readonly options: Required<Omit<AdamWOptions, 'weightDecay'>>;
  /** Tensors (3) f64 of {@link adamwRate}, one for each pair of learning rate and step count that parameters have. */
  private readonly rates: Tensor[] = [];
  private rateOf: ReadonlyMap<Slot, number> = new Map();

  constructor(groups: readonly ParameterGroup[], options: AdamWOptions = {}) {
    checkCall('AdamW', options, kTable);
    const { beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weightDecay = 0 } = options;
    super(groups, weightDecay, adamwMoments);
    this.options = { beta1, beta2, eps };
  }

  override get recordingKey(): string | null {
    return [...this.rateOf].map(([{ name }, rate]) => `${name}:${rate}`).join();
  }

  override dispose(): void {
    super.dispose();
    for (const rate of this.rates) rate.dispose();
  }

  protected override prepare(active: readonly Slot[], learningRate: number): void {
    const { beta1, beta2 } = this.options;
    const kinds = new Map<string, number>();
    this.rateOf = new Map(
      active.map((slot) => {
        const kind = `${slot.learningRateScale} ${slot.steps}`;
        const known = kinds.get(kind);
        if (known !== undefined) return [slot, known];
        const values = adamwRate(learningRate * slot.learningRateScale, slot.steps, [beta1, beta2]);
        this.setRate(kinds.size, values, slot.tensor.device);
        kinds.set(kind, kinds.size);
        return [slot, kinds.size - 1];
      }),
    );
  }

  private setRate(i: number, values: Float64Array, device: string): void {
    this.rates[i] ??= unscoped(() => zeros([values.length], { dtype: 'f64', device }));
    scope(() => noGrad(() => copy_(this.rates[i] as Tensor, tensor(values, { device }))));
  }

  protected override updateAll(active: readonly Slot[], coefficient: Tensor | null): void {
    scope(() => noGrad(() => this.adamw(active, { coefficient, eps: this.options.eps })));
  }

  /** Enqueues the update of some parameters, with weight decay or without; runs without recording, in a scope. */
  protected adamw(
    slots: readonly Slot[],
    {
      coefficient,
      eps,
      decays = true,
    }: { coefficient: Tensor | null; eps: number; decays?: boolean },
  ): void {
    const { beta1, beta2 } = this.options;
    const parameters = slots.map((slot) => {
      const { exp_avg: m, exp_avg_sq: v } = slot.moments as unknown as AdamwState;
      const rate = this.rates[this.rateOf.get(slot) as number] as Tensor;
      const weightDecay = decays ? slot.weightDecay : 0;
      return { param: slot.tensor, grad: this.gradientOf(slot), m, v, rate, weightDecay };
    });
    adamwSteps(parameters, { betas: [beta1, beta2], eps, coefficient });
  }

  /** The gradient that a parameter's moments take up, of its shape and dtype. A subclass may transform it. */
  protected gradientOf({ tensor: parameter }: Slot): Tensor {
    return parameter.grad as Tensor;
  }
}
