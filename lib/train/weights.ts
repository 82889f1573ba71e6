/**
 * How much the regularizers count at step s of S, s = 0 first. Pure functions of the step; only `adaptive` looks at the
 * micro-batch.
 */
import { ArgumentError } from '../errors.ts';
import type { ResolvedRegularizers } from './methods.ts';

/** Share of l1 that the schedules of the consistency term end at. */
const kConsistencyFloor = 0.1;

/** l2 or l3 at a step, as a share of its weight. */
export function regularizerFactor(
  options: Pick<
    ResolvedRegularizers,
    | 'regularizerSchedule'
    | 'regularizerWarmupRatio'
    | 'regularizerRampRatio'
    | 'regularizerWarmupSteps'
  >,
  step: number,
  total: number,
): number {
  checkTotal(total);
  const {
    regularizerWarmupRatio: wait,
    regularizerRampRatio: rise,
    regularizerWarmupSteps: warmup,
  } = options;
  const linear = warmup > 0 ? Math.min(1, step / warmup) : 1;
  switch (options.regularizerSchedule) {
    case 'constant':
      return 1;
    case 'two_phase': {
      const past = step - wait * total;
      return rise > 0 ? Math.min(1, Math.max(0, past / (rise * total))) : past >= 0 ? 1 : 0;
    }
    case 'linear_warmup':
      return linear;
    case 'quadratic_warmup':
      return linear * linear;
  }
}

/**
 * l1 at a step, as a share of its weight.
 * @param certainty for `adaptive`: 1 - clamp(mean teacher entropy at T / ln V, 0, 1)
 */
export function consistencyFactor(
  schedule: ResolvedRegularizers['consistencySchedule'],
  { step, total, certainty = 1 }: { step: number; total: number; certainty?: number },
): number {
  checkTotal(total);
  const above = 1 - kConsistencyFloor;
  switch (schedule) {
    case 'constant':
      return 1;
    case 'cosine':
      return kConsistencyFloor + (above * (1 + Math.cos((Math.PI * step) / total))) / 2;
    case 'adaptive':
      return kConsistencyFloor + above * certainty;
  }
}

function checkTotal(total: number): void {
  if (!(total >= 1))
    throw new ArgumentError(`schedules need a run of at least 1 step, got ${total}`);
}
