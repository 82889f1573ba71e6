/** Stochastic gradient descent with momentum, as torch does it. */
import { ArgumentError } from '../errors.ts';
import { sgdStep } from '../ops/index.ts';
import { type CallTable, checkCall, finiteNumber, kCall } from '../options/call.ts';
import type { Tensor } from '../tensor.ts';
import {
  type MomentShapes,
  Optimizer,
  type ParameterGroup,
  type Slot,
  type Update,
} from './optimizer.ts';

/** Settings of {@link Sgd}. */
export interface SgdOptions {
  momentum?: number; // 0
  dampening?: number; // 0
  weightDecay?: number; // 0
  nesterov?: boolean; // false
}

const kNumber = finiteNumber({ least: 0 });
const kTable: CallTable<SgdOptions> = {
  ...{ momentum: kNumber, dampening: finiteNumber(), weightDecay: kNumber },
  nesterov: kCall.boolean,
};

export const sgdMoments = (shape: readonly number[], momentum: number): MomentShapes =>
  momentum === 0 ? {} : { momentum_buffer: shape };

/**
 * SGD with momentum, as in torch. A step is
 *
 *     g += wd p
 *     buffer = first ? g : mu buffer + (1 - dampening) g
 *     p -= lr (nesterov ? g + mu buffer : buffer)
 */
export class Sgd extends Optimizer {
  private readonly options: Required<Omit<SgdOptions, 'weightDecay'>>;

  constructor(groups: readonly ParameterGroup[], options: SgdOptions = {}) {
    checkCall('Sgd', options, kTable);
    const { momentum = 0, dampening = 0, weightDecay = 0, nesterov = false } = options;
    if (nesterov && (momentum === 0 || dampening !== 0)) {
      throw new ArgumentError('Sgd: nesterov needs momentum > 0 and dampening 0');
    }
    super(groups, weightDecay, (shape) => sgdMoments(shape, momentum));
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
