/** MBPP (Austin et al. 2021): short programs in Python by a description and three tests. */
import type { Fields } from './fields.ts';
import { passAt1 } from './groups.ts';
import type { CodeItem, CodeTask } from './task.ts';

/** The numbers of the tasks that are asked, and of those that stand before each as examples. */
const kAsked = { first: 11, last: 510 };
const kExamples = [2, 3, 4];

/** The item of a row of the original file, or of the sanitized one, which has other names. */
function read(fields: Fields): CodeItem {
  const tests = fields.texts('test_list', { least: 1 });
  const imports = fields.has('test_imports') ? fields.texts('test_imports', { least: 0 }) : [];
  const setup = fields.has('test_setup_code')
    ? [fields.text('test_setup_code', { mayBeEmpty: true })]
    : [];
  const task = fields.text(fields.has('text') ? 'text' : 'prompt');
  return {
    taskId: `Mbpp/${fields.whole('task_id')}`,
    question:
      `You are an expert Python programmer, and here is your task: ${task} ` +
      `Your code should pass these tests:\n\n${tests.slice(0, 3).join('\n')}\n[BEGIN]\n`,
    answer: fields.text('code'),
    test: [...imports, ...setup, ...tests].join('\n'),
  };
}

/** The task of this name of lm-evaluation-harness. */
export const mbpp: CodeTask = {
  name: 'mbpp',
  version: 1,
  kind: 'generation',
  help: 'short programs in Python (completions; they are run with --allow-code-execution alone)',
  fields: [
    ['task_id', 'text', 'code', 'test_list'],
    ['task_id', 'prompt', 'code', 'test_list'],
  ],
  belongsTo(fields, part) {
    const id = fields.whole('task_id');
    return part === 'items' ? id >= kAsked.first && id <= kAsked.last : kExamples.includes(id);
  },
  numFewshot: kExamples.length,
  read,
  prompt: ({ question }) => question,
  example: ({ question, answer }) => `${question}${answer}\n[DONE]`,
  stopStrings: ['[DONE]'],
  maxNewTokens: 256,
  // A chat model puts its program between fences.
  program: (_, output) => /```(?:\w+)?\n?([\s\S]*?)\n?```/.exec(output)?.[1] ?? output,
  summarize: passAt1,
};
