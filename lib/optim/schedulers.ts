/**
 * Learning-rate schedules under the names and with the options of Hugging Face transformers.
 *
 * A schedule is a pure function of the step: rate(s) is the rate USED at step s, s = 0 first. A warm-up is s/w from
 * s = 0, so its first step has rate 0. Nothing is stored between steps, so a resumed run needs only the step number.
 */
import { ArgumentError, UnsupportedError } from '../errors.ts';
import { checkKeys } from '../options/call.ts';
import { shown } from '../shown.ts';

/** Parameters of a schedule under transformers' names in camel case. Each schedule reads those that it has. */
export interface SchedulerOptions {
  /** Cosine waves after the warm-up (default 0.5) or, with restarts, how often the cosine restarts (default 1). */
  numCycles?: number;
  /** polynomial: the rate at the end (default 1e-7) and the exponent (default 1). */
  lrEnd?: number;
  power?: number;
  /** cosine_with_min_lr: the floor, as a rate or as a share of the learning rate. One of the two is required. */
  minLr?: number;
  minLrRate?: number;
  /** inverse_sqrt: the time scale in steps (default: the warm-up, or 10000 without one). */
  timescale?: number;
  /** warmup_stable_decay: steps of the decay (required), curves and floor of the warm-up and the decay. */
  numDecaySteps?: number;
  numStableSteps?: number;
  warmupType?: RampType;
  decayType?: RampType;
  minLrRatio?: number;
}

/** Shape of the warm-up or decay part of a schedule. */
export type RampType = (typeof RAMP_TYPES)[number];
/** Shapes that `warmupType` and `decayType` may have. */
export const RAMP_TYPES = ['linear', 'cosine', '1-sqrt'] as const;

/** Input of {@link learningRateSchedule}. */
export interface ScheduleInput {
  /** Hugging Face name of the schedule. */
  scheduler: string;
  /** Steps of the run; the decay reaches its end at `total`. */
  total: number;
  /** Warm-up in whole steps; see {@link warmupStepsFrom} for shares. */
  warmup: number;
  /** Base learning rate: the peak of the schedule. */
  learningRate: number;
  options?: SchedulerOptions;
}

/** A function that gives the factor of the base rate at a step. */
type Factor = (step: number) => number;

interface FactorInput {
  total: number;
  warmup: number;
  learningRate: number;
  options: SchedulerOptions;
}

const kInverseSqrtTimescale = 10_000;

function ramp(step: number, warmup: number): number {
  return step / Math.max(1, warmup);
}

/** Position between the end of the warm-up (0) and the end of the run (1). */
function progress(step: number, { total, warmup }: FactorInput): number {
  return (step - warmup) / Math.max(1, total - warmup);
}

function cosineFactor(input: FactorInput, floor: number): Factor {
  const cycles = input.options.numCycles ?? 0.5;
  return (step) => {
    if (step < input.warmup) return ramp(step, input.warmup);
    const wave = 0.5 * (1 + Math.cos(Math.PI * cycles * 2 * progress(step, input)));
    return Math.max(0, wave * (1 - floor) + floor);
  };
}

function linearFactor(input: FactorInput): Factor {
  const { total, warmup } = input;
  return (step) =>
    step < warmup ? ramp(step, warmup) : Math.max(0, (total - step) / Math.max(1, total - warmup));
}

function restartsFactor(input: FactorInput): Factor {
  const cycles = input.options.numCycles ?? 1;
  return (step) => {
    if (step < input.warmup) return ramp(step, input.warmup);
    const at = progress(step, input);
    return at >= 1 ? 0 : Math.max(0, 0.5 * (1 + Math.cos(Math.PI * ((cycles * at) % 1))));
  };
}

function polynomialFactor(input: FactorInput): Factor {
  const { total, warmup, learningRate } = input;
  const { lrEnd = 1e-7, power = 1 } = input.options;
  if (lrEnd >= learningRate) {
    throw new ArgumentError(
      `polynomial: lrEnd (${lrEnd}) must be smaller than the learning rate (${learningRate})`,
    );
  }
  return (step) => {
    if (step < warmup) return ramp(step, warmup);
    if (step >= total) return lrEnd / learningRate;
    const left = 1 - (step - warmup) / (total - warmup);
    return ((learningRate - lrEnd) * left ** power + lrEnd) / learningRate;
  };
}

function inverseSqrtFactor({ warmup, options }: FactorInput): Factor {
  const timescale = options.timescale ?? (warmup > 0 ? warmup : kInverseSqrtTimescale);
  if (!(timescale > 0)) {
    throw new ArgumentError(
      `inverse_sqrt: timescale must be a number > 0, got ${shown(timescale)}`,
    );
  }
  return (step) =>
    step < warmup ? ramp(step, warmup) : 1 / Math.sqrt((step + timescale - warmup) / timescale);
}

function minLrFactor(input: FactorInput): Factor {
  const { minLr, minLrRate } = input.options;
  const floors = [minLrRate, minLr === undefined ? undefined : minLr / input.learningRate];
  const [floor, ...others] = floors.filter((value) => value !== undefined);
  if (floor === undefined || others.length > 0) {
    throw new ArgumentError('cosine_with_min_lr: one of minLr and minLrRate must be given');
  }
  return cosineFactor(input, floor);
}

/** Curves of warmup_stable_decay: how much of the way is done (rising) or left (falling) at `at` in 0..1. */
const kRising: Record<RampType, (at: number) => number> = {
  linear: (at) => at,
  cosine: (at) => 0.5 * (1 - Math.cos(Math.PI * at)),
  '1-sqrt': (at) => 1 - Math.sqrt(1 - at),
};
const kFalling: Record<RampType, (at: number, cycles: number) => number> = {
  linear: (at) => 1 - at,
  cosine: (at, cycles) => 0.5 * (1 + Math.cos(Math.PI * cycles * 2 * at)),
  '1-sqrt': (at) => 1 - Math.sqrt(at),
};

function stableDecayFactor({ total, warmup, options }: FactorInput): Factor {
  const {
    numDecaySteps: decay,
    warmupType = 'linear',
    decayType = 'cosine',
    minLrRatio: floor = 0,
  } = options;
  if (decay === undefined)
    throw new ArgumentError('warmup_stable_decay: numDecaySteps must be given');
  for (const type of [warmupType, decayType]) {
    if (!Object.hasOwn(kRising, type)) {
      throw new ArgumentError(
        `warmup_stable_decay: unknown curve "${type}", known: ${Object.keys(kRising).join(', ')}`,
      );
    }
  }
  const stable = options.numStableSteps ?? total - warmup - decay;
  const cycles = options.numCycles ?? 0.5;
  const lift = (share: number): number => Math.max(0, share * (1 - floor) + floor);
  return (step) => {
    if (step < warmup) return lift(kRising[warmupType](ramp(step, warmup)));
    if (step < warmup + stable) return 1;
    if (step >= warmup + stable + decay) return floor;
    return lift(kFalling[decayType]((step - warmup - stable) / Math.max(1, decay), cycles));
  };
}

/** The schedules by their names. */
const kSchedulers: Record<string, (input: FactorInput) => Factor> = {
  constant: () => () => 1,
  constant_with_warmup:
    ({ warmup }) =>
    (step) =>
      step < warmup ? ramp(step, warmup) : 1,
  linear: linearFactor,
  cosine: (input) => cosineFactor(input, 0),
  cosine_with_restarts: restartsFactor,
  cosine_with_min_lr: minLrFactor,
  polynomial: polynomialFactor,
  inverse_sqrt: inverseSqrtFactor,
  warmup_stable_decay: stableDecayFactor,
};

/** Names that {@link learningRateSchedule} takes. */
export const SCHEDULER_NAMES: readonly string[] = Object.keys(kSchedulers);

/**
 * Makes a schedule, which is a function of the step. Its result `rate(s)` is the learning rate of step `s`, `s = 0` first.
 *
 * Formulas: transformers `optimization.py`; `polynomial` at a warm-up as long as the run (0/0 there) gives its end rate.
 * @throws ArgumentError on an unknown name or an option out of range; `rate(s)` where it is negative or not finite
 */
export function learningRateSchedule(input: ScheduleInput): (step: number) => number {
  checkKeys('learningRateSchedule', input, 'scheduler total warmup learningRate options');
  const { scheduler, total, warmup, learningRate, options = {} } = input;
  const make = Object.hasOwn(kSchedulers, scheduler) ? kSchedulers[scheduler] : undefined;
  if (scheduler === 'reduce_lr_on_plateau' || scheduler === 'greedy') {
    throw new UnsupportedError(
      `learningRateSchedule: "${scheduler}" depends on the evaluation, not on the step; known: ${SCHEDULER_NAMES.join(', ')}`,
    );
  }
  if (make === undefined) {
    const known = SCHEDULER_NAMES.join(', ');
    throw new ArgumentError(
      `learningRateSchedule: unknown scheduler "${scheduler}", known: ${known}`,
    );
  }
  checkCount('total', total, 1);
  checkCount('warmup', warmup, 0);
  if (!(learningRate >= 0) || !Number.isFinite(learningRate)) {
    throw new ArgumentError(
      `learningRateSchedule: learningRate must be finite and >= 0, got ${shown(learningRate)}`,
    );
  }
  const factor = make({ total, warmup, learningRate, options });
  return (step) => {
    const rate = learningRate * factor(step);
    if (rate >= 0 && Number.isFinite(rate)) return rate;
    throw new ArgumentError(
      `learningRateSchedule: a rate must be finite and >= 0, but the options of ${scheduler} give step ${step} of ${total} the rate ${rate}`,
    );
  };
}

/**
 * The number of warm-up steps for transformers' `warmup_steps`: below 1 it is a share of the run, rounded up; from 1 on it is a
 * number of steps, rounded down.
 */
export function warmupStepsFrom(warmupSteps: number, total: number): number {
  if (!(warmupSteps >= 0) || !Number.isFinite(warmupSteps)) {
    throw new ArgumentError(`warmupSteps must be finite and >= 0, got ${shown(warmupSteps)}`);
  }
  return warmupSteps >= 1 ? Math.floor(warmupSteps) : Math.ceil(total * warmupSteps);
}

function checkCount(name: string, value: number, least: number): void {
  if (!Number.isSafeInteger(value) || value < least) {
    throw new ArgumentError(
      `learningRateSchedule: ${name} must be a whole number >= ${least}, got ${shown(value)}`,
    );
  }
}
