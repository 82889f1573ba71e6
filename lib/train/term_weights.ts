/** Weights of the regularizers at a step, by the schedules of a run. */
import type { TermWeights } from '../losses/nlg.ts';
import {
  adaptiveWeightOfEntropy,
  consistencyWeightAt,
  regularizerFactorAt,
  type StepOfRun,
} from '../losses/schedules.ts';
import type { ResolvedRegularizers } from './methods.ts';

/** How sure the teacher is over a window's rows. */
export interface TeacherEntropy {
  /** Mean entropy at T of a row, in nats. */
  readonly mean: number;
  /** The most that it can be: the logarithm of the outcomes between which a row decides. */
  readonly most: number;
}

/**
 * l1, l2, l3 at a step. `adaptive` asks for the teacher's entropy over the window, so that all of it has one weight.
 * @returns null where the teacher was stopped
 */
export async function termWeights(
  options: ResolvedRegularizers,
  at: StepOfRun,
  teacherEntropy: () => Promise<TeacherEntropy | null>,
): Promise<TermWeights | null> {
  const { consistencySchedule, consistencyWeight: weight, diversityWeight, svdWeight } = options;
  const factor = regularizerFactorAt(options.regularizerSchedule, at, {
    warmupRatio: options.regularizerWarmupRatio,
    rampRatio: options.regularizerRampRatio,
    warmupSteps: options.regularizerWarmupSteps,
  });
  const others = { diversity: diversityWeight * factor, svd: svdWeight * factor };
  if (weight === 0) return { consistency: 0, ...others };
  if (consistencySchedule !== 'adaptive') {
    return { consistency: consistencyWeightAt(consistencySchedule, weight, at), ...others };
  }
  const entropy = await teacherEntropy();
  if (entropy === null) return null;
  return {
    consistency: adaptiveWeightOfEntropy(entropy.mean, entropy.most, {
      weight,
      min: options.consistencyWeightMin,
      max: options.consistencyWeightMax,
    }),
    ...others,
  };
}
