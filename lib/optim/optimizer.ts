/**
 * Base class of the optimisers: parameters in groups, their moments and step counts, and their state in a checkpoint. The
 * arithmetic is in the kernels. A parameter without a gradient is left alone.
 */
import { ArgumentError, FormatError } from '../errors.ts';
import { zeros } from '../ops/index.ts';
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

/** Shapes of an optimiser's state for one parameter, by the names that torch and transformers give the tensors. */
export type MomentShapes = Readonly<Record<string, readonly number[]>>;

export interface Slot extends OptimizerParameter {
  readonly moments: Record<string, Tensor>;
  readonly weightDecay: number;
  readonly learningRateScale: number;
  /** Steps that moved this parameter. */
  steps: number;
}

/** The update of one parameter. */
export interface Update {
  readonly learningRate: number;
  /** One f64 on the device, or null for 1. */
  readonly coefficient: Tensor | null;
}

/** Writes parameters from their gradients; its state is named tensors that a checkpoint holds. */
export abstract class Optimizer {
  private readonly slots: Slot[] = [];
  private moving: readonly Slot[] = [];
  private learningRate = 0;

  constructor(
    groups: readonly ParameterGroup[],
    weightDecay: number,
    shapesOf: (shape: readonly number[]) => MomentShapes,
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
          moments: makeMoments(shapesOf(parameter.shape), parameter),
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
    this.begin(learningRate);
    this.finish(coefficient);
  }

  /** The first half of step(): counts a step of every parameter that has a gradient. */
  begin(learningRate: number): void {
    this.moving = scope(() => this.slots.filter(({ tensor }) => tensor.grad !== null));
    this.learningRate = learningRate;
    for (const slot of this.moving) slot.steps++;
    this.prepare(this.moving, learningRate);
  }

  /** The second half: the updates. */
  finish(coefficient: Tensor | null): void {
    this.updateAll(this.moving, coefficient);
  }

  /**
   * Between the halves: what the ops of finish() depend on besides values on the device; null where numbers of this step are
   * handed to them, so that they cannot be recorded and run again.
   */
  get recordingKey(): string | null {
    return null;
  }

  /** Updates one parameter after the other; for those that take all at once, to be overridden. */
  protected updateAll(moving: readonly Slot[], coefficient: Tensor | null): void {
    for (const slot of moving) {
      scope(() => {
        const learningRate = this.learningRate * slot.learningRateScale;
        const grad = slot.tensor.grad as Tensor;
        noGrad(() => this.update(slot, grad, { learningRate, coefficient }));
      });
    }
  }

  /** For those whose updates read the step's numbers on the device. */
  protected prepare(_moving: readonly Slot[], _learningRate: number): void {}

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
      for (const [name, moment] of Object.entries(slot.moments)) {
        tensors[`${name}/${slot.name}`] = moment;
      }
    }
    return { tensors, steps };
  }

  /** Takes over an earlier state; its tensors become the optimiser's own. @throws FormatError if it does not fit. */
  restore({ tensors, steps }: ReturnType<Optimizer['state']>, path: string): void {
    for (const slot of this.slots) {
      for (const [name, moment] of Object.entries(slot.moments)) {
        const key = `${name}/${slot.name}`;
        const value = tensors[key];
        if (value === undefined || value.shape.join() !== moment.shape.join()) {
          throw new FormatError(`${path}: the optimiser's state has no fitting "${key}"`, { path });
        }
        moment.dispose();
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

  /** The update of one parameter. */
  protected update(_slot: Slot, _grad: Tensor, _update: Update): void {
    throw new ArgumentError('an optimiser updates each parameter or all of them');
  }
}

function makeMoments(shapes: MomentShapes, { dtype, device }: Tensor): Record<string, Tensor> {
  if (dtype !== 'f32' && dtype !== 'f64') {
    throw new ArgumentError(`optimizer: masters must be f32 or f64, got ${dtype}`);
  }
  return unscoped(() =>
    Object.fromEntries(
      Object.entries(shapes).map(([name, shape]) => [name, zeros(shape, { dtype, device })]),
    ),
  );
}
