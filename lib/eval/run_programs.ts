/** Programs that a model wrote as answers: their file of samples, and their results once they are run. */
import { checkKeys } from '../options/call.ts';
import type { CodeRunner } from './run_code.ts';
import type { ItemRecord } from './scoring.ts';
import type { CodeItem, CodeTask } from './tasks/task.ts';

/** A line of a file of samples, as the graders of HumanEval (`completion`) and EvalPlus (`solution`) read it. */
export interface ProgramSample {
  readonly task_id: string;
  /** The generated text. */
  readonly completion: string;
  /** The whole program, without its test. */
  readonly solution: string;
}

/** The samples of scored items, in the order of the records. */
export function samplesOf(
  task: CodeTask,
  items: readonly CodeItem[],
  records: readonly ItemRecord[],
): readonly ProgramSample[] {
  return records.map(({ index, output = '' }) => {
    const item = items[index] as CodeItem;
    return {
      task_id: item.taskId,
      completion: output,
      solution: task.program(item, output),
    };
  });
}

/**
 * Runs the programs of those records that have no outcome yet, one after the other, each with its test.
 * @returns the records with the outcome, and `pass@1` among their numbers
 */
export async function* runPrograms(
  task: CodeTask,
  items: readonly CodeItem[],
  records: readonly ItemRecord[],
  options: { readonly runner: CodeRunner; readonly signal?: AbortSignal | undefined },
): AsyncGenerator<ItemRecord> {
  const { runner, signal } = checkKeys('runPrograms', options, 'runner signal');
  for (const record of records) {
    if (record.outcome !== undefined) continue;
    const item = items[record.index] as CodeItem;
    const outcome = await runner.run(task.program(item, record.output ?? ''), {
      test: item.test,
      reference: task.program(item, item.answer),
      signal,
    });
    yield { ...record, outcome, metrics: { 'pass@1': Number(outcome === 'passed') } };
  }
}
