/** The list of tasks on the command line. */
import type { TaskName } from '../../tasks/list.ts';
import type { TrainSettings } from '../train_options.ts';
import { causalLmCli } from './causal_lm.ts';
import type { CliTask } from './cli_task.ts';
import { seq2seqLmCli } from './seq2seq_lm.ts';
import { sequenceClassificationCli } from './sequence_classification.ts';

/** All tasks by their names. The first one is the default of `--task`. */
export const CLI_TASKS: Readonly<Record<TaskName, CliTask>> = {
  'causal-lm': causalLmCli as CliTask,
  'seq2seq-lm': seq2seqLmCli as CliTask,
  'sequence-classification': sequenceClassificationCli as CliTask,
};

/** The task that the settings name. */
export function cliTaskOf({ task = 'causal-lm' }: Pick<TrainSettings, 'task'>): CliTask {
  return CLI_TASKS[task];
}

/** The task with the given PEFT task type; null for a type that no task has. */
export function cliTaskOfType(taskType: string): CliTask | null {
  return Object.values(CLI_TASKS).find((task) => task.taskType === taskType) ?? null;
}
