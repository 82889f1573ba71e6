import { expect, it } from 'vitest';
import { readItems } from '../../../lib/eval/task_data.ts';
import { humaneval } from '../../../lib/eval/tasks/humaneval.ts';
import { mbpp } from '../../../lib/eval/tasks/mbpp.ts';
import { fixturePath } from '../../support/fixtures.ts';

it('asks for the rest of a function', async () => {
  const items = await readItems(fixturePath('scoring/humaneval.jsonl'), humaneval);
  expect(items).toHaveLength(5);
  const [item] = items as [(typeof items)[0]];
  expect(humaneval.prompt(item)).toBe('def double(x):\n    """ Return twice x.\n    """\n');
  expect(humaneval.program(item, '    return x + x')).toBe(`${item.question}    return x + x`);
  expect(item.test).toMatch(/\ncheck\(double\)$/);
});

it('asks for tasks 11 to 510 of the one file of MBPP, after tasks 2 to 4', async () => {
  const path = fixturePath('scoring/mbpp.jsonl');
  const items = await readItems(path, mbpp);
  expect(items.map(({ taskId }) => taskId)).toEqual([
    ...['Mbpp/11', 'Mbpp/12', 'Mbpp/13', 'Mbpp/14', 'Mbpp/510'],
  ]);
  const examples = await readItems(path, mbpp, { part: 'examples' });
  expect(examples.map(({ taskId }) => taskId)).toEqual(['Mbpp/2', 'Mbpp/3', 'Mbpp/4']);
  const [item] = items as [(typeof items)[0]];
  expect(mbpp.prompt(item)).toBe(
    'You are an expert Python programmer, and here is your task: Write a function to square a number. ' +
      'Your code should pass these tests:\n\nassert square(2) == 4\nassert square(-3) == 9\nassert square(0) == 0\n[BEGIN]\n',
  );
  expect(mbpp.example(item)).toBe(`${item.question}${item.answer}\n[DONE]`);
});

it('takes a program from its fences', async () => {
  const [item] = await readItems(fixturePath('scoring/mbpp.jsonl'), mbpp, { limit: 1 });
  const program = (output: string) => mbpp.program(item as NonNullable<typeof item>, output);
  expect(program('def f(): pass')).toBe('def f(): pass');
  expect(program('Here:\n```python\ndef f(): pass\n```\nDone.')).toBe('def f(): pass');
});
