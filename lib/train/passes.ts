/** The choice between the ways of computing a run's micro-batches: op by op, as graphs, or by the caller's loss. */
import type { TermNote } from '../losses/term.ts';
import type { Model } from '../models/index.ts';
import { taskOf } from '../tasks/list.ts';
import type { LossSettings, MicroBatch } from '../tasks/task.ts';
import { productsOf } from './compute.ts';
import { GraphPasses } from './graph_passes.ts';
import type { ResolvedOptions } from './options.ts';
import { PlainPasses } from './plain_passes.ts';
import { termsOf } from './regularizers.ts';
import type { Passes } from './step.ts';
import type { AnyTrainerOptions } from './trainer_options.ts';
import type { LossFunction } from './types.ts';
import { UserLossPasses } from './user_loss.ts';

/** Settings for the passes of a run that are not options of its loss. */
export interface PassResources
  extends Pick<LossSettings, 'chunkBytes' | 'teacherCache' | 'teacherIdentity'> {
  readonly captureGraphs: boolean;
  readonly onNote?: (note: TermNote) => void;
}

/** Makes the passes of a run. */
export function passesOf(
  { tuned, loss: userLoss, terms: own = [] }: AnyTrainerOptions,
  { regularizers, seed, resources: { compute } }: ResolvedOptions,
  { captureGraphs, ...resources }: PassResources,
): Passes {
  const int8 = productsOf(compute);
  if (userLoss !== undefined) {
    return new UserLossPasses(tuned as never as UserLossTuned, userLoss as LossFunction, int8);
  }
  const task = taskOf(tuned.model);
  const terms = termsOf(task, regularizers, own);
  const loss = task.loss(tuned, {
    ...{ ...resources, terms, seed, regularizers: { ...regularizers } },
    ...(int8.teacher && { teacherInt8: int8.teacher }),
  });
  return captureGraphs && loss.recorded !== null
    ? new GraphPasses(tuned, loss, resources.teacherCache !== undefined)
    : new PlainPasses(tuned, loss, int8.student);
}

type UserLossTuned = ConstructorParameters<typeof UserLossPasses>[0];

/** Makes the function that selects and counts the rows of a batch. */
export function selectorOf(
  model: Model,
  { regularizers }: Pick<ResolvedOptions, 'regularizers'>,
): (batch: unknown) => MicroBatch {
  const task = taskOf(model);
  return (batch) => task.select(batch, { ...regularizers });
}
