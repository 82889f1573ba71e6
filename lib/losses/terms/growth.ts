/** The schedule that the weights of diversity and SVD share: they grow from 0 in the course of a run. */
import { choice, number, whole } from '../../options/kinds.ts';
import type { ResolvedOf } from '../../options/option.ts';
import { is } from '../../options/requirements.ts';
import { growingSchedule, type Term } from '../term.ts';

const kTwoPhase = is('regularizerSchedule', 'two_phase');

/** Options of the schedule. */
export const growthOptions = {
  /** Schedule of diversity and SVD. Default `two_phase`. */
  regularizerSchedule: choice({
    choices: ['constant', 'two_phase', 'linear_warmup', 'quadratic_warmup'],
    default: 'two_phase',
    help: 'schedule of the diversity and SVD weights l2 and l3',
  }),
  /** Share w of the run in which the factor of `two_phase` is 0. Default .2. */
  regularizerWarmupRatio: number({
    least: 0,
    default: 0.2,
    help: 'share of the run without l2 and l3',
    requires: [kTwoPhase],
  }),
  /** Share r of the run in which `two_phase` grows. Default .05. */
  regularizerRampRatio: number({
    least: 0,
    default: 0.05,
    help: 'share of the run in which l2 and l3 grow',
    requires: [kTwoPhase],
  }),
  /** Steps of `linear_warmup` and `quadratic_warmup`; 0 gives the full weight at once. Default 0. */
  regularizerWarmupSteps: whole({
    least: 0,
    default: 0,
    help: 'steps in which l2 and l3 grow',
    requires: [is('regularizerSchedule', 'linear_warmup', 'quadratic_warmup')],
  }),
};

/** The properties that all terms with this schedule share: they read no teacher, and their weight grows. */
export function growingTerm(
  key: string,
  weight: number,
  options: ResolvedOf<typeof growthOptions>,
): Pick<Term, 'key' | 'rows' | 'teacher' | 'weightAt'> {
  return {
    ...{ key, rows: 'regularized', teacher: false },
    weightAt: growingSchedule(options.regularizerSchedule, weight, {
      warmupRatio: options.regularizerWarmupRatio,
      rampRatio: options.regularizerRampRatio,
      warmupSteps: options.regularizerWarmupSteps,
    }),
  };
}
