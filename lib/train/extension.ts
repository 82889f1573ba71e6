/**
 * A run that is resumed with another number of steps than it began with. It must end in the same bytes as a run that had that number
 * from its start, so every learning rate and weight of a term that it has used must be the same in both. These are compared rather
 * than listed by schedule: a cosine depends on the number of steps, a constant rate does not, and the stable part of
 * warmup_stable_decay can be prolonged until the decay begins.
 */
import { setImmediate } from 'node:timers/promises';
import { ArgumentError } from '../errors.ts';
import type { Term } from '../losses/term.ts';
import { learningRateOf } from './plan.ts';
import type { ResolvedRun } from './resolve_run.ts';
import type { AnyTrainerOptions } from './trainer_options.ts';
import type { RunPlan } from './types.ts';

/** The parts of a plan that schedules depend on. */
export type RunLength = Pick<RunPlan, 'totalSteps' | 'warmupSteps'>;

/** A run that is to be resumed with another number of steps. */
export interface LengthChange {
  /** Path of the checkpoint, for messages. */
  readonly path: string;
  /** Number of steps in the checkpoint. */
  readonly step: number;
  /** Number of steps whose results the run goes on with: more than `step` where the best step was evaluated later. */
  readonly used: number;
  /** The length that the run began with, and the one that it is to have. */
  readonly from: RunLength;
  readonly to: RunLength;
}

/** Steps that are compared before the event loop gets a turn. */
const kSlice = 10_000;

/** Shares of the teacher's entropy at which weights that depend on it are compared. */
const kEntropies = [0.25, 0.75];

/**
 * Checks that a run may be resumed with another number of steps.
 * @throws ArgumentError with the reason why it may not, and what to do instead
 */
export async function checkNewLength(
  change: LengthChange,
  input: AnyTrainerOptions,
  options: ResolvedRun,
): Promise<void> {
  const { path, step, from, to } = change;
  if (to.totalSteps < step) {
    throw new ArgumentError(
      `${path} has ${step} steps, and maxSteps or numTrainEpochs ask for a run of ${to.totalSteps}; ask for at least ${step}, or ` +
        'begin anew with overwrite: true',
    );
  }
  const reason = callerObstacle(input) ?? (await firstDifference(change, input, options));
  if (reason === null) return;
  throw new ArgumentError(
    `${path} is of a run of ${from.totalSteps} steps, and cannot be continued to ${to.totalSteps} bit for bit: ${reason}; resume it ` +
      `with ${from.totalSteps} steps, or train its adapter further in a new run (docs/training.md lists what can be extended)`,
  );
}

/** The function of the caller's that is told the number of steps and may depend on it; null: there is none. */
function callerObstacle({ loss, afterBackward }: AnyTrainerOptions): string | null {
  if (loss !== undefined) return 'a loss of your own is told the number of steps';
  return afterBackward === undefined ? null : 'afterBackward is told the number of steps';
}

/** The first value that would have been another one in a run of the new length, in words; null: there is none. */
async function firstDifference(
  { used, from, to }: LengthChange,
  input: AnyTrainerOptions,
  options: ResolvedRun,
): Promise<string | null> {
  const [then, now] = [from, to].map((length) => schedulesOf(length, input, options)) as [
    Schedule[],
    Schedule[],
  ];
  for (let step = 0; step < used; step++) {
    if (step % kSlice === kSlice - 1) await setImmediate();
    for (const [i, { name, at }] of then.entries()) {
      const [was, is] = [at(step), (now[i] as Schedule).at(step)];
      if (Object.is(was, is)) continue;
      return `${name} depends on the number of steps (step ${step + 1} had ${was}, and has ${is} in a run of ${to.totalSteps})`;
    }
  }
  return null;
}

/** A value that changes with the step, counted from 0, and its name in messages. */
interface Schedule {
  readonly name: string;
  readonly at: (step: number) => number;
}

/** The learning rate and the weights of all terms in a run of some length. */
function schedulesOf(
  length: RunLength,
  input: AnyTrainerOptions,
  options: ResolvedRun,
): Schedule[] {
  const { totalSteps, warmupSteps } = length;
  const { terms, optimization } = options;
  const { lrSchedulerType } = optimization;
  const entropies = terms.some(({ readsTeacherEntropy }) => readsTeacherEntropy)
    ? kEntropies
    : [null];
  const weight = (term: Term, teacherEntropy: number | null): Schedule => ({
    name: `the weight of the term ${term.key}`,
    at: (step) => term.weightAt({ step, totalSteps, teacherEntropy }),
  });
  return [
    {
      name: `the learning rate (${lrSchedulerType}, ${warmupSteps} steps of warm-up)`,
      at: learningRateOf(length, options),
    },
    {
      name: "what the adapter's method does",
      at: (step) => input.tuned.methodTraining?.plan({ step, totalSteps }) ?? 0,
    },
    ...terms.flatMap((term) => entropies.map((entropy) => weight(term, entropy))),
  ];
}
