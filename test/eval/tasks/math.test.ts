import { mkdtemp, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { readItems } from '../../../lib/eval/task_data.ts';
import { hendrycksMath, math } from '../../../lib/eval/tasks/math.ts';
import type { QuestionItem } from '../../../lib/eval/tasks/task.ts';
import { fixturePath } from '../../support/fixtures.ts';

const items = () => readItems(fixturePath('scoring/math.jsonl'), math);

it('takes the answers from the boxes', async () => {
  expect((await items()).map(({ answer }) => answer)).toEqual([
    ...['\\frac{3}{2}', '3', '90^\\circ', '2\\sqrt{2}', '\\left(1,2\\right)'],
  ]);
  const [first] = await items();
  expect(first?.groups).toEqual({ type: 'Prealgebra', level: 'Level 1' });
});

it("grades by the paper's protocol", async () => {
  const [fraction, , angle, root, point] = (await items()) as [
    QuestionItem,
    QuestionItem,
    QuestionItem,
    QuestionItem,
    QuestionItem,
  ];
  expect(math.prompt(fraction)).toMatch(
    /### Instruction:\nWhat is \$1\+\\frac12\$\?\n\n### Response:$/,
  );
  const accuracy = (item: QuestionItem, output: string) =>
    math.extract(item, output).metrics.accuracy;
  expect(accuracy(fraction, 'So.\nThe answer is: \\frac32')).toBe(1);
  expect(accuracy(fraction, 'The answer is: 3/2.')).toBe(1);
  expect(accuracy(fraction, 'The answer is: 1.5')).toBe(0);
  expect(accuracy(fraction, '\\frac{3}{2}')).toBe(0);
  expect(math.extract(fraction, 'none').extracted).toEqual({ answer: null });
  expect(accuracy(angle, 'The answer is: 90.\n')).toBe(1);
  expect(accuracy(root, 'The answer is: 2\\sqrt2')).toBe(1);
  expect(accuracy(point, 'The answer is: (1, 2)')).toBe(1);
});

it("grades by lm-evaluation-harness's protocol", async () => {
  const [fraction] = (await items()) as [QuestionItem];
  expect(hendrycksMath.prompt(fraction)).toBe('Problem: What is $1+\\frac12$?\nAnswer:');
  const match = (output: string) => hendrycksMath.extract(fraction, output).metrics.exact_match;
  expect(match(' $\\frac{3}{2}$')).toBe(1);
  expect(match(' It is $\\frac32$.')).toBe(1);
  expect(match(' It is \\frac32')).toBe(0);
});

it('refuses a solution without an answer', async () => {
  const path = join(await mkdtemp(join(tmpdir(), 'math-')), 'rows.jsonl');
  await writeFile(path, JSON.stringify({ problem: 'Why?', solution: 'Because.' }));
  await expect(readItems(path, math)).rejects.toThrow(
    /rows\.jsonl:1: field "solution" must be a solution with its answer in \\boxed\{\}, got "Because\."/,
  );
});
