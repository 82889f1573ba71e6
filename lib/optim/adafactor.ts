/**
 * Adafactor (Shazeer and Stern, 2018) as transformers implements it: only the means of rows and columns of a matrix's second moment
 * are kept, so that the state takes next to no memory.
 */
import { ArgumentError } from '../errors.ts';
import { adafactorStep } from '../ops/index.ts';
import { type CallTable, checkCall, finiteNumber, kCall, orNull } from '../options/call.ts';
import type { Tensor } from '../tensor.ts';
import {
  type MomentShapes,
  Optimizer,
  type ParameterGroup,
  type Slot,
  type Update,
} from './optimizer.ts';

/** Settings of {@link Adafactor}. The defaults are those of a Hugging Face trainer with `optim: 'adafactor'`. */
export interface AdafactorOptions {
  /** Number added to the squared gradient, and the least RMS(parameter) for `scaleParameter`. */
  eps?: readonly [number, number]; // [1e-30, 1e-3]
  /** Largest RMS of an update; larger ones are scaled down to it. */
  clipThreshold?: number; // 1
  /** Decay of the second moment at step t: 1 - t^decayRate. */
  decayRate?: number; // -0.8
  /** Decay of the first moment; null: there is none. */
  beta1?: number | null; // null
  weightDecay?: number; // 0
  /** Whether to multiply the rate by RMS(parameter). */
  scaleParameter?: boolean; // false
  /** Whether to multiply the rate by min(1e-2, 1/sqrt(t)); a rate of 1 is then transformers' lr None. */
  relativeStep?: boolean; // false
  /** Whether `relativeStep` multiplies by min(1e-6 t, 1/sqrt(t)) instead. */
  warmupInit?: boolean; // false
}

const kTable: CallTable<AdafactorOptions> = {
  eps: kCall.list,
  ...{ clipThreshold: finiteNumber({ least: 0 }), weightDecay: finiteNumber({ least: 0 }) },
  ...{ decayRate: finiteNumber(), beta1: orNull(finiteNumber({ least: 0 })) },
  ...{ scaleParameter: kCall.boolean, relativeStep: kCall.boolean, warmupInit: kCall.boolean },
};

const kRelativeStep = 1e-2;
const kWarmupStep = 1e-6;

/** Shapes of the state of a parameter; matrices are factored over their last two axes. */
export function adafactorMoments(
  shape: readonly number[],
  { firstMoment }: { firstMoment: boolean },
): MomentShapes {
  const first: MomentShapes = firstMoment ? { exp_avg: shape } : {};
  return shape.length < 2
    ? { exp_avg_sq: shape, ...first }
    : {
        exp_avg_sq_row: shape.slice(0, -1),
        exp_avg_sq_col: [...shape.slice(0, -2), shape.at(-1) as number],
        ...first,
      };
}

/** Adafactor (Shazeer & Stern 2018, arXiv 1804.04235): second moments kept as means of rows and columns. */
export class Adafactor extends Optimizer {
  private readonly options: Required<Omit<AdafactorOptions, 'weightDecay'>>;

  constructor(groups: readonly ParameterGroup[], options: AdafactorOptions = {}) {
    checkCall('Adafactor', options, kTable);
    const { eps = [1e-30, 1e-3], clipThreshold = 1, decayRate = -0.8, beta1 = null } = options;
    const { scaleParameter = false, relativeStep = false, warmupInit = false } = options;
    if (warmupInit && !relativeStep) {
      throw new ArgumentError('Adafactor: warmupInit needs relativeStep: true');
    }
    super(groups, options.weightDecay ?? 0, (shape) =>
      adafactorMoments(shape, { firstMoment: beta1 !== null }),
    );
    const switches = { scaleParameter, relativeStep, warmupInit };
    this.options = { eps, clipThreshold, decayRate, beta1, ...switches };
  }

  protected override update(
    { tensor: parameter, moments, steps, weightDecay }: Slot,
    grad: Tensor,
    { learningRate, coefficient }: Update,
  ): void {
    const { eps, clipThreshold, decayRate, beta1, scaleParameter } = this.options;
    adafactorStep(parameter, grad, {
      row: (moments.exp_avg_sq_row ?? moments.exp_avg_sq) as Tensor,
      column: moments.exp_avg_sq_col ?? null,
      m: moments.exp_avg ?? null,
      lr: learningRate * this.relativeRate(steps),
      beta1: beta1 ?? 0,
      beta2: 1 - steps ** decayRate,
      eps: eps[0],
      clip: clipThreshold,
      weightDecay,
      scaleFloor: scaleParameter ? eps[1] : null,
      coefficient,
    });
  }

  private relativeRate(step: number): number {
    const { relativeStep, warmupInit } = this.options;
    if (!relativeStep) return 1;
    return Math.min(warmupInit ? kWarmupStep * step : kRelativeStep, 1 / Math.sqrt(step));
  }
}
