/** HumanEval (Chen et al. 2021): functions in Python, of which the head and the doc string are given. */
import { passAt1 } from './groups.ts';
import type { CodeTask } from './task.ts';

/**
 * The imports and whole functions that a prompt has before the one that is asked for. The test has its own of these, since some tests
 * compute with them what they expect.
 */
function headOf(prompt: string, name: string): string {
  const functions = [...prompt.matchAll(/^(?:@.*\n)*(?:async )?def (\w+)/gm)];
  return prompt.slice(0, functions.find(([, one]) => one === name)?.index ?? 0);
}

/** The task of this name of lm-evaluation-harness, with one greedy answer. */
export const humaneval: CodeTask = {
  name: 'humaneval',
  version: 1,
  kind: 'generation',
  help: 'functions in Python by their doc strings (completions; they are run with --allow-code-execution alone)',
  fields: [['task_id', 'prompt', 'test', 'entry_point']],
  numFewshot: 0,
  read: (fields) => ({
    taskId: fields.text('task_id'),
    question: fields.text('prompt'),
    answer: fields.has('canonical_solution') ? fields.text('canonical_solution') : '',
    test: [
      headOf(fields.text('prompt'), fields.text('entry_point')),
      fields.text('test'),
      `check(${fields.text('entry_point')})`,
    ].join('\n'),
  }),
  prompt: ({ question }) => question,
  example: ({ question, answer }) => question + answer,
  stopStrings: ['\nclass', '\ndef', '\n#', '\nif', '\nprint'],
  maxNewTokens: 1024,
  program: ({ question }, output) => question + output,
  summarize: passAt1,
};
