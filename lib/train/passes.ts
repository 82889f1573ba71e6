/** The runner of a run's micro-batches, made of its options, and the selection of their rows. */
import type { TermNote } from '../losses/term.ts';
import type { Model } from '../models/index.ts';
import { taskOf } from '../tasks/list.ts';
import type { LossSettings, MicroBatch, Objective } from '../tasks/task.ts';
import { productsOf } from './compute.ts';
import { CustomObjective } from './custom_objective.ts';
import { StepGraphs } from './graphs.ts';
import type { ResolvedRun } from './resolve_run.ts';
import { Runner } from './runner.ts';
import type { AnyTrainerOptions } from './trainer_options.ts';
import type { LossFunction } from './types.ts';

/** Settings for the passes of a run that are not options of its loss. */
export interface PassResources
  extends Pick<LossSettings, 'chunkBytes' | 'teacherCache' | 'teacherIdentity'> {
  readonly captureGraphs: boolean;
  readonly onNote?: (note: TermNote) => void;
}

/** Makes the objective of a run: its task's, or the caller's own loss. */
export function objectiveOf(
  { tuned, loss }: AnyTrainerOptions,
  { regularizers, seed, terms, resources: { compute } }: ResolvedRun,
  { captureGraphs: graphs, ...resources }: PassResources,
): Objective {
  const int8 = productsOf(compute);
  if (loss !== undefined) {
    return new CustomObjective(tuned as never, loss as LossFunction, int8);
  }
  const task = taskOf(tuned.model);
  return task.objective(tuned, {
    ...{ ...resources, graphs, terms, seed, int8, regularizers: { ...regularizers } },
  });
}

/** Makes the runner of a run. */
export function runnerOf(
  input: AnyTrainerOptions,
  options: ResolvedRun,
  resources: PassResources,
): Runner {
  const objective = objectiveOf(input, options, resources);
  const { tuned } = input;
  const graphs = resources.captureGraphs ? new StepGraphs(tuned) : null;
  return new Runner({ tuned, objective, graphs });
}

/** Makes the function that selects and counts the rows of a batch. */
export function selectorOf(
  model: Model,
  { regularizers }: Pick<ResolvedRun, 'regularizers'>,
): (data: unknown) => Omit<MicroBatch, 'index'> {
  const task = taskOf(model);
  return (data) => task.select(data, { ...regularizers });
}
