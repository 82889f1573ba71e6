// Weights of the regularizers over a run of S steps, s = 0..S-1 (BA-LoRA, arXiv 2408.04556), as pure functions of the step. They are
// finite for S = 0, too, where progress is 0.
import { ArgumentError } from '../errors.ts';
import { checkKeys } from '../options/call.ts';

/** Schedule of the weight of the consistency term. */
export type ConsistencySchedule = 'constant' | 'cosine' | 'adaptive';
/** Schedule of the weights of diversity and SVD. */
export type RegularizerSchedule = 'constant' | 'two_phase' | 'linear_warmup' | 'quadratic_warmup';

/** A step of a run. */
export interface StepOfRun {
  /** From 0. */
  step: number;
  /** S. */
  totalSteps: number;
}

/**
 * The weight l1 at a step. `constant`: l1. `cosine`: from l1 down to a tenth of it, .1 l1 + .9 l1 (1 + cos(pi s/S))/2. `adaptive`
 * depends on the teacher and not on the step, see adaptiveConsistencyWeight.
 */
export function consistencyWeightAt(
  schedule: Exclude<ConsistencySchedule, 'adaptive'>,
  weight: number,
  { step, totalSteps }: StepOfRun,
): number {
  checkStep(step, totalSteps);
  if (schedule === 'constant') return weight;
  const progress = totalSteps > 0 ? step / totalSteps : 0;
  return 0.1 * weight + (0.9 * weight * (1 + Math.cos(Math.PI * progress))) / 2;
}

/** Bounds of the `adaptive` schedule. */
export interface AdaptiveOptions {
  /** l1, from which the defaults of the bounds come. */
  weight: number;
  /** Default, and null: .1 l1. */
  min?: number | null;
  /** Default, and null: l1. */
  max?: number | null;
}

/** The bounds with their defaults filled in. */
export function adaptiveBounds({ weight, min, max }: AdaptiveOptions): {
  min: number;
  max: number;
} {
  return { min: min ?? 0.1 * weight, max: max ?? weight };
}

/**
 * The weight l1 of the adaptive schedule, which is larger for a confident teacher. It is
 *
 *     l1 = min + (max - min) c, c = 1 - clamp(meanEntropy / ln V, 0, 1).
 *
 * @param meanEntropy of the teacher's distribution at temperature T, over the selected rows, in nats
 * @param vocabulary V; V = 1 gives c = 1
 */
export function adaptiveConsistencyWeight(
  meanEntropy: number,
  vocabulary: number,
  options: AdaptiveOptions,
): number {
  checkKeys('adaptiveConsistencyWeight', options, 'weight min max');
  return adaptiveWeightOfEntropy(meanEntropy, Math.log(vocabulary), options);
}

/** The weight of adaptiveConsistencyWeight() for an entropy of at most `most` nats, which is ln V there; 0 gives c = 1. */
export function adaptiveWeightOfEntropy(
  meanEntropy: number,
  most: number,
  options: AdaptiveOptions,
): number {
  const { min, max } = adaptiveBounds(options);
  const share = most > 0 ? meanEntropy / most : 0;
  const confidence = 1 - Math.min(Math.max(share, 0), 1);
  return min + (max - min) * confidence;
}

/** Settings of the schedules of diversity and SVD. */
export interface RegularizerScheduleOptions {
  /** Share w of the run before the ramp of two_phase. Default .2. */
  warmupRatio?: number;
  /** Share r of the run in which two_phase rises. Default .05. */
  rampRatio?: number;
  /** Number w of steps in which linear_warmup and quadratic_warmup rise; 0 gives 1 at once. Default 0. */
  warmupSteps?: number;
  /** Whether to round two_phase's boundaries to whole steps, as in the published code. Default false. */
  integerSteps?: boolean;
}

/**
 * The factor of l2 and l3 at a step, from 0 to 1. two_phase: clamp((s - w S)/(r S), 0, 1); linear_warmup: min(1, s/w);
 * quadratic_warmup: the square of that.
 */
export function regularizerFactorAt(
  schedule: RegularizerSchedule,
  { step, totalSteps }: StepOfRun,
  options: RegularizerScheduleOptions = {},
): number {
  checkKeys('regularizerFactorAt', options, 'warmupRatio rampRatio warmupSteps integerSteps');
  const { warmupRatio = 0.2, rampRatio = 0.05, warmupSteps = 0, integerSteps = false } = options;
  checkStep(step, totalSteps);
  switch (schedule) {
    case 'constant':
      return 1;
    case 'two_phase': {
      const start = integerSteps ? Math.trunc(warmupRatio * totalSteps) : warmupRatio * totalSteps;
      const ramp = integerSteps
        ? Math.max(Math.trunc(rampRatio * totalSteps), 1)
        : rampRatio * totalSteps;
      if (ramp === 0) return step >= start ? 1 : 0;
      return Math.min(Math.max((step - start) / ramp, 0), 1);
    }
    case 'linear_warmup':
      return warmupSteps > 0 ? Math.min(1, step / warmupSteps) : 1;
    case 'quadratic_warmup':
      return warmupSteps > 0 ? Math.min(1, step / warmupSteps) ** 2 : 1;
  }
}

function checkStep(step: number, totalSteps: number): void {
  if (!(step >= 0) || !(totalSteps >= 0)) {
    throw new ArgumentError(
      `schedule: step and totalSteps must be >= 0, got ${step} of ${totalSteps}`,
    );
  }
}
