/** The list of tasks. A new task is a file beside this one and a line here. */
import { UnsupportedError } from '../errors.ts';
import type { Model } from '../models/index.ts';
import { causalLm } from './causal_lm.ts';
import { seq2seqLm } from './seq2seq_lm.ts';
import { sequenceClassification } from './sequence_classification.ts';
import type { Task, TaskName } from './task.ts';

export type { Task, TaskName };

/** A task with any type of model and batch, for code that does not depend on them. */
export type AnyTask = Task;

/** All tasks, by name. */
export const TASKS: Readonly<Record<TaskName, AnyTask>> = {
  'causal-lm': causalLm as AnyTask,
  'seq2seq-lm': seq2seqLm as AnyTask,
  'sequence-classification': sequenceClassification as AnyTask,
};

/** The names of all tasks. */
export const TASK_NAMES = Object.keys(TASKS) as TaskName[];

/**
 * The task that trains a model.
 * @throws UnsupportedError for a model that no task trains
 */
export function taskOf(model: Model): AnyTask {
  const found = Object.values(TASKS).find((task) => task.supports(model));
  if (found !== undefined) return found;
  throw new UnsupportedError(
    `no task trains this ${model.modelType} model; load it with AutoModelForCausalLM, AutoModelForSeq2SeqLM or ` +
      'AutoModelForSequenceClassification',
  );
}
