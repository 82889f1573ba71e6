/**
 * AdamW and SGD over f32 (or f64) masters, and what a checkpoint keeps of them. The arithmetic is the optimiser
 * kernels'; here are the groups, the moments and the step count. A parameter without a gradient is left alone.
 */
import { ArgumentError, FormatError } from '../errors.ts';
import { adamwStep, sgdStep, zeros } from '../ops/index.ts';
import { noGrad, scope, type Tensor, unscoped } from '../tensor.ts';

/** A trained tensor and its name, under which its state is kept. */
export interface OptimizerParameter {
  readonly name: string;
  readonly tensor: Tensor;
}

/** Parameters that share settings. */
export interface ParameterGroup {
  readonly parameters: readonly OptimizerParameter[];
  /** Default: the optimiser's. */
  readonly weightDecay?: number;
  /** Times the step's rate. Default 1. */
  readonly learningRateScale?: number;
}

/** One update. */
export interface StepInput {
  readonly learningRate: number;
  /** () f64, multiplied into every gradient (clipping). Default 1. */
  readonly coefficient?: Tensor | null;
}

/** One parameter's own moments, by their names in torch's state dict. */
type Moments = Record<string, Tensor>;

interface Slot extends OptimizerParameter {
  readonly moments: Moments;
  readonly weightDecay: number;
  readonly learningRateScale: number;
  /** Steps that moved this parameter. */
  steps: number;
}

/** The update of one parameter. */
interface Update {
  readonly learningRate: number;
  /** One f64 on the device, or null for 1. */
  readonly coefficient: Tensor | null;
}

/** Writes parameters from their gradients; its state is named tensors that a checkpoint holds. */
export abstract class Optimizer {
  private readonly slots: Slot[] = [];

  constructor(
    groups: readonly ParameterGroup[],
    weightDecay: number,
    private readonly momentNames: readonly string[],
  ) {
    const names = new Set<string>();
    for (const group of groups) {
      for (const { name, tensor: parameter } of group.parameters) {
        if (names.has(name))
          throw new ArgumentError(`optimizer: the parameter "${name}" is given twice`);
        names.add(name);
        this.slots.push({
          name,
          tensor: parameter,
          moments: unscoped(() => makeMoments(momentNames, parameter)),
          weightDecay: group.weightDecay ?? weightDecay,
          learningRateScale: group.learningRateScale ?? 1,
          steps: 0,
        });
      }
    }
    if (names.size === 0) throw new ArgumentError('optimizer: there is no parameter to train');
  }

  /** Moves every parameter that has a gradient. Enqueues and returns. */
  step({ learningRate, coefficient = null }: StepInput): void {
    for (const slot of this.slots) {
      scope(() => {
        const { grad } = slot.tensor;
        if (grad === null) return;
        slot.steps++;
        const rate = learningRate * slot.learningRateScale;
        noGrad(() => this.update(slot, grad, { learningRate: rate, coefficient }));
      });
    }
  }

  /** Drops the gradients. */
  zeroGrad(): void {
    for (const slot of this.slots) slot.tensor.grad = null;
  }

  /** Moments by `<moment>/<parameter>` (the same tensors that step() goes on with) and step counts. */
  state(): { tensors: Record<string, Tensor>; steps: Record<string, number> } {
    const tensors: Record<string, Tensor> = {};
    const steps: Record<string, number> = {};
    for (const slot of this.slots) {
      steps[slot.name] = slot.steps;
      for (const name of this.momentNames) {
        tensors[`${name}/${slot.name}`] = slot.moments[name] as Tensor;
      }
    }
    return { tensors, steps };
  }

  /** Takes over an earlier state; its tensors become the optimiser's own. @throws FormatError if it does not fit. */
  restore({ tensors, steps }: ReturnType<Optimizer['state']>, path: string): void {
    for (const slot of this.slots) {
      for (const name of this.momentNames) {
        const key = `${name}/${slot.name}`;
        const value = tensors[key];
        if (value === undefined || value.shape.join() !== slot.tensor.shape.join()) {
          throw new FormatError(`${path}: the optimiser's state has no fitting "${key}"`, { path });
        }
        slot.moments[name]?.dispose();
        slot.moments[name] = value;
      }
      slot.steps = steps[slot.name] ?? 0;
    }
  }

  /** Frees the moments. */
  dispose(): void {
    for (const { moments } of this.slots) {
      for (const moment of Object.values(moments)) moment.dispose();
    }
  }

  protected abstract update(slot: Slot, grad: Tensor, update: Update): void;
}

/** Settings of {@link AdamW} in torch's names. */
export interface AdamWOptions {
  beta1?: number; // 0.9
  beta2?: number; // 0.999
  eps?: number; // 1e-8
  weightDecay?: number; // 0
}

/** Adam with decoupled weight decay: p -= lr wd p, then p -= lr m_hat / (sqrt(v_hat) + eps), as torch does it. */
export class AdamW extends Optimizer {
  private readonly options: Required<Omit<AdamWOptions, 'weightDecay'>>;

  constructor(groups: readonly ParameterGroup[], options: AdamWOptions = {}) {
    const { beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weightDecay = 0 } = options;
    super(groups, weightDecay, ['exp_avg', 'exp_avg_sq']);
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

/** Settings of {@link Sgd}. */
export interface SgdOptions {
  momentum?: number; // 0
  dampening?: number; // 0
  weightDecay?: number; // 0
  nesterov?: boolean; // false
}

/** g += wd p; buffer = first ? g : mu buffer + (1 - dampening) g; p -= lr (nesterov ? g + mu buffer : buffer). */
export class Sgd extends Optimizer {
  private readonly options: Required<Omit<SgdOptions, 'weightDecay'>>;

  constructor(groups: readonly ParameterGroup[], options: SgdOptions = {}) {
    const { momentum = 0, dampening = 0, weightDecay = 0, nesterov = false } = options;
    if (nesterov && (momentum === 0 || dampening !== 0)) {
      throw new ArgumentError('Sgd: nesterov needs momentum > 0 and dampening 0');
    }
    super(groups, weightDecay, momentum === 0 ? [] : ['momentum_buffer']);
    this.options = { momentum, dampening, nesterov };
  }

  protected override update(
    slot: Slot,
    grad: Tensor,
    { learningRate: lr, coefficient }: Update,
  ): void {
    sgdStep(slot.tensor, grad, {
      ...this.options,
      lr,
      coefficient,
      weightDecay: slot.weightDecay,
      buffer: slot.moments.momentum_buffer ?? null,
      first: slot.steps === 1,
    });
  }
}

function makeMoments(names: readonly string[], parameter: Tensor): Moments {
  const { shape, dtype } = parameter;
  if (dtype !== 'f32' && dtype !== 'f64') {
    throw new ArgumentError(`optimizer: masters must be f32 or f64, got ${dtype}`);
  }
  return Object.fromEntries(names.map((name) => [name, zeros(shape, { dtype })]));
}
