/**
 * Base class of the optimisers: parameters in groups, their moments and step counts, and their state in a checkpoint. The
 * arithmetic is in the kernels. A parameter without a gradient is not changed.
 */
import { ArgumentError, FormatError } from '../errors.ts';
import type { FactorOfPair } from '../nn/adapter_hook.ts';
import { zeros } from '../ops/index.ts';
import { checkKeys } from '../options/call.ts';
import { noGrad, scope, type Tensor, unscoped } from '../tensor.ts';

/** A trained tensor and its name, under which its state is kept. */
export interface OptimizerParameter {
  readonly name: string;
  readonly tensor: Tensor;
  /** Its place in a low-rank pair. Left out: it is no factor of one. */
  readonly factor?: FactorOfPair;
}

/** Parameters that share settings. */
export interface ParameterGroup {
  readonly parameters: readonly OptimizerParameter[];
  /** Default: the optimiser's. */
  readonly weightDecay?: number;
  /** Factor of the step's learning rate. Default 1. */
  readonly learningRateScale?: number;
}

/** Input of {@link Optimizer.step}. */
export interface StepInput {
  readonly learningRate: number;
  /** () f64, multiplied into every gradient (clipping). Default 1. */
  readonly coefficient?: Tensor | null;
}

/** Shapes of an optimiser's state for one parameter, by the names that torch and transformers give the tensors. */
export type MomentShapes = Readonly<Record<string, readonly number[]>>;

/** A parameter with its state. */
export interface Slot extends OptimizerParameter {
  readonly moments: Record<string, Tensor>;
  readonly weightDecay: number;
  readonly learningRateScale: number;
  /** Number of steps that updated this parameter. */
  steps: number;
}

/** The update of one parameter. */
export interface Update {
  readonly learningRate: number;
  /** One f64 on the device, or null for 1. */
  readonly coefficient: Tensor | null;
}

/** Base class of the optimisers, which update parameters by their gradients; a checkpoint holds its state as named tensors. */
export abstract class Optimizer {
  private readonly slots: Slot[] = [];
  /** Parameters that this step updates. */
  private active: readonly Slot[] = [];
  private learningRate = 0;

  constructor(
    groups: readonly ParameterGroup[],
    weightDecay: number,
    shapesOf: (shape: readonly number[]) => MomentShapes,
  ) {
    const names = new Set<string>();
    for (const group of groups) {
      for (const { name, tensor: parameter, factor } of group.parameters) {
        if (names.has(name))
          throw new ArgumentError(
            `optimizer: the parameter "${name}" is given twice; list it in one group alone`,
          );
        names.add(name);
        this.slots.push({
          name,
          tensor: parameter,
          ...(factor !== undefined && { factor }),
          moments: makeMoments(shapesOf(parameter.shape), parameter),
          weightDecay: group.weightDecay ?? weightDecay,
          learningRateScale: group.learningRateScale ?? 1,
          steps: 0,
        });
      }
    }
    if (names.size === 0) {
      throw new ArgumentError(
        'optimizer: there is no parameter to train; give one group at least one',
      );
    }
  }

  /** Updates every parameter that has a gradient. Enqueues the ops and returns. */
  step(input: StepInput): void {
    const { learningRate, coefficient = null } = checkKeys(
      'step',
      input,
      'learningRate coefficient',
    );
    this.begin(learningRate);
    this.finish(coefficient);
  }

  /** The first half of step(): counts a step of every parameter that has a gradient. */
  begin(learningRate: number): void {
    this.active = scope(() => this.slots.filter(({ tensor }) => tensor.grad !== null));
    this.learningRate = learningRate;
    for (const slot of this.active) slot.steps++;
    this.prepare(this.active, learningRate);
  }

  /** The second half of step(): updates the parameters. */
  finish(coefficient: Tensor | null): void {
    this.updateAll(this.active, coefficient);
  }

  /**
   * A key of the numbers on the host that the ops of finish() depend on; it is read between the two halves. Null where numbers of
   * the step are arguments of the ops, so that these cannot be recorded and run again.
   */
  get recordingKey(): string | null {
    return null;
  }

  /** Updates the parameters one after the other; a subclass that updates all in one op overrides it. */
  protected updateAll(active: readonly Slot[], coefficient: Tensor | null): void {
    for (const slot of active) {
      scope(() => {
        const learningRate = this.learningRate * slot.learningRateScale;
        const grad = slot.tensor.grad as Tensor;
        noGrad(() => this.update(slot, grad, { learningRate, coefficient }));
      });
    }
  }

  /** Writes the step's numbers to the device, for a subclass whose updates read them there. */
  protected prepare(_active: readonly Slot[], _learningRate: number): void {}

  /** Drops the gradients. */
  zeroGrad(): void {
    for (const slot of this.slots) slot.tensor.grad = null;
  }

  /** The moments as `<moment>/<parameter>`, which are the tensors that step() uses, and the step counts. */
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

  /** Replaces the state by an earlier one, whose tensors become the optimiser's. @throws FormatError if it does not fit */
  restore({ tensors, steps }: ReturnType<Optimizer['state']>, path: string): void {
    checkSteps(
      this.slots.map(({ name }) => name),
      steps,
      path,
    );
    for (const slot of this.slots) {
      for (const [name, moment] of Object.entries(slot.moments)) {
        const key = `${name}/${slot.name}`;
        const value = tensors[key];
        if (value === undefined || value.shape.join() !== moment.shape.join()) {
          throw foreignState(path, `has no fitting "${key}"`);
        }
        moment.dispose();
        slot.moments[name] = value;
      }
      slot.steps = steps[slot.name] as number;
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
    throw new ArgumentError('optimizer: a subclass must override update() or updateAll()');
  }
}

/** Checks that there is a step count for each parameter, and for no other. @throws FormatError */
function checkSteps(
  names: readonly string[],
  steps: Readonly<Record<string, number>>,
  path: string,
): void {
  const known = new Set(names);
  for (const name of names) {
    const count = Object.hasOwn(steps, name) ? steps[name] : undefined;
    if (!Number.isSafeInteger(count) || (count as number) < 0)
      throw foreignState(path, `has no step count of "${name}"`);
  }
  const foreign = Object.keys(steps).find((name) => !known.has(name));
  if (foreign !== undefined) throw foreignState(path, `counts the steps of "${foreign}"`);
}

function foreignState(path: string, what: string): FormatError {
  return new FormatError(`${path}: the optimiser's state ${what}`, {
    path,
    advice: 'restore it into an optimiser of the same kind, with the same parameters',
  });
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
