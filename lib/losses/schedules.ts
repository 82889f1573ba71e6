// Weights of the regularizers over a run of S steps, s = 0..S-1 (BA-LoRA, arXiv 2408.04556). Pure functions of the step;
// a run of no steps asks nothing, but a call with S = 0 is finite all the same (progress 0).
import { ArgumentError } from '../errors.ts';

/** How the weight of the consistency term moves over a run. */
export type ConsistencySchedule = 'constant' | 'cosine' | 'adaptive';
/** How the weights of diversity and SVD grow over a run. */
export type RegularizerSchedule = 'constant' | 'two_phase' | 'linear_warmup' | 'quadratic_warmup';

/** Place in a run. */
export interface StepOfRun {
  /** From 0. */
  step: number;
  /** S. */
  totalSteps: number;
}

/**
 * l1 at a step. `constant`: l1; `cosine`: from l1 down to a tenth, .1 l1 + .9 l1 (1 + cos(pi s/S))/2. `adaptive` depends on
 * the teacher, not on the step: see adaptiveConsistencyWeight.
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
 * l1 = min + (max - min) c, c = 1 - clamp(meanEntropy / ln V, 0, 1): a teacher that is sure is followed more closely.
 * @param meanEntropy of the teacher's distribution at temperature T, over the selected rows, in nats
 * @param vocabulary V; V = 1 gives c = 1
 */
export function adaptiveConsistencyWeight(
  meanEntropy: number,
  vocabulary: number,
  options: AdaptiveOptions,
): number {
  return adaptiveWeightOfEntropy(meanEntropy, Math.log(vocabulary), options);
}

/** adaptiveConsistencyWeight() by the most that the entropy can be, in nats: ln V. 0 gives c = 1. */
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
  /** w of two_phase, a share of the run. Default .2. */
  warmupRatio?: number;
  /** r of two_phase, a share of the run. Default .05. */
  rampRatio?: number;
  /** w of the warm-ups, in steps; 0 (default) gives 1 at once. */
  warmupSteps?: number;
  /** Round two_phase's boundaries to whole steps, as the published code does. Default false. */
  integerSteps?: boolean;
}

/**
 * The factor, 0..1, of l2 and l3 at a step. two_phase: clamp((s - w S)/(r S), 0, 1); linear_warmup: min(1, s/w);
 * quadratic_warmup: its square.
 */
export function regularizerFactorAt(
  schedule: RegularizerSchedule,
  { step, totalSteps }: StepOfRun,
  {
    warmupRatio = 0.2,
    rampRatio = 0.05,
    warmupSteps = 0,
    integerSteps = false,
  }: RegularizerScheduleOptions = {},
): number {
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
    throw new ArgumentError(`schedule: step ${step} of ${totalSteps} is not a step of a run`);
  }
}
