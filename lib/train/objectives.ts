/** What a step minimises, by the kind of model. */
import type { NluWarning } from '../losses/nlu.ts';
import type { Model } from '../models/index.ts';
import { ClassifierObjective } from './classifier_objective.ts';
import type { ResolvedRegularizers } from './methods.ts';
import { makeObjective, type Objective, type ObjectiveResources } from './objective.ts';
import { type AnyTrainerOptions, isClassifierRun } from './trainer_options.ts';
import type { AnyBatch } from './types.ts';

/** @param onWarning told what a term cannot be, at the first step that meets it */
export function objectiveOf(
  input: AnyTrainerOptions,
  regularizers: ResolvedRegularizers,
  onWarning: (warning: NluWarning) => void,
  resources: ObjectiveResources = {},
): Objective<Model, AnyBatch> {
  return isClassifierRun(input)
    ? new ClassifierObjective(input.tuned.model, regularizers, onWarning)
    : makeObjective(input.tuned, regularizers, input.loss, resources);
}
