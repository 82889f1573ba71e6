import { mkdtemp, readFile, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { readItems } from '../../lib/eval/task_data.ts';
import { readTaskFile } from '../../lib/eval/task_yaml.ts';
import type { ChoiceTask, GenerationTask } from '../../lib/eval/tasks/task.ts';
import { fixturePath } from '../support/fixtures.ts';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'task-yaml-'));
});

async function written(name: string, text: string): Promise<string> {
  const path = join(folder, name);
  await writeFile(path, text);
  return path;
}

const kQuestion = 'task: own\noutput_type: generate_until\ndoc_to_text: "{{q}}"\n';

describe('a task of the user', () => {
  it('is a multiple choice in a few lines', async () => {
    const path = fixturePath('scoring/capitals.yaml');
    expect((await readFile(path, 'utf8')).split('\n').length).toBeLessThan(15);
    const task = (await readTaskFile(path)) as ChoiceTask;
    const items = await readItems(fixturePath('scoring/capitals.jsonl'), task);
    expect(items).toHaveLength(5);
    expect(items[0]).toEqual({
      context: 'The capital of France is',
      choices: ['Lyon', 'Paris'],
      gold: [1],
    });
    expect(task.measure(items[0] as (typeof items)[0], [-1, -2], [1, 1])).toEqual({
      acc: 0,
      acc_norm: 0,
    });
  });

  it('is a question whose answer is generated', async () => {
    const task = (await readTaskFile(fixturePath('scoring/sums.yaml'))) as GenerationTask;
    const [item] = await readItems(fixturePath('scoring/sums.jsonl'), task);
    expect(item).toEqual({ question: '1 + 2 =', answer: '3' });
    expect(task.extract(item as typeof item & object, ' 1 + 2 = 3')).toEqual({
      extracted: { answer: '3' },
      metrics: { exact_match: 1 },
    });
    const none = task.extract(item as typeof item & object, 'many');
    expect(none).toEqual({ extracted: { answer: null }, metrics: { exact_match: 0 } });
  });

  it('has its delimiter between question and answer of an example', async () => {
    const of = async (text: string) => {
      const path = await written('e.yaml', `${kQuestion}doc_to_target: "{{a}}"\n${text}`);
      const task = (await readTaskFile(path)) as GenerationTask;
      return task.example({ question: '1 + 2 =', answer: '3' });
    };
    expect(await of('')).toBe('1 + 2 = 3');
    expect(await of('target_delimiter: ""\n')).toBe('1 + 2 =3');
  });

  it('takes the right answer by index, letter or text', async () => {
    const path = await written(
      'gold.yaml',
      'task: own\noutput_type: multiple_choice\ndoc_to_text: "{{q.text}}"\ndoc_to_choice: ["{{a}}", "{{b}}"]\ndoc_to_target: right\n',
    );
    const task = (await readTaskFile(path)) as ChoiceTask;
    const row = { q: { text: 'Which?' }, a: 'x', b: 'y' };
    const gold = async (right: unknown) => {
      const data = await written('gold.jsonl', JSON.stringify({ ...row, right }));
      return (await readItems(data, task))[0]?.gold;
    };
    expect(await gold(1)).toEqual([1]);
    expect(await gold('1')).toEqual([1]);
    expect(await gold('B')).toEqual([1]);
    expect(await gold('y')).toEqual([1]);
    await expect(gold('C')).rejects.toThrow(
      /gold\.jsonl:1: field "right" must be the text, the letter or the index of an answer, got "C"/,
    );
    await expect(gold(2)).rejects.toThrow(
      /field "right" must be a whole number from 0 to 1, got 2/,
    );
  });

  it('has another definition when its file says something else', async () => {
    const of = async (text: string) =>
      (await readTaskFile(await written('d.yaml', `${kQuestion}doc_to_target: "{{a}}"\n${text}`)))
        .definition;
    expect(await of('')).toBe(await of('# a comment\n'));
    expect(await of('')).not.toBe(await of('max_gen_toks: 9\n'));
  });
});

describe('a wrong file', () => {
  const refused = async (text: string) => readTaskFile(await written('wrong.yaml', text));

  it('names file, line and key', async () => {
    await expect(refused(`${kQuestion}doc_to_target: "{{a}}"\nmax_tokens: 3\n`)).rejects.toThrow(
      /wrong\.yaml:5: max_tokens is no key of a task; known: task, version, .*max_gen_toks/,
    );
    await expect(refused(`${kQuestion}doc_to_target: "{{a}}"\nuntil:\n  - 3\n`)).rejects.toThrow(
      /wrong\.yaml:6: until: give a list of texts/,
    );
    await expect(refused(kQuestion)).rejects.toThrow(/wrong\.yaml: doc_to_target is missing; give/);
    await expect(refused('task: own\noutput_type: choice\n')).rejects.toThrow(
      /wrong\.yaml:2: output_type: give multiple_choice or generate_until/,
    );
    await expect(refused('task: own\n')).rejects.toThrow(/wrong\.yaml: output_type is missing/);
    await expect(refused('- a\n')).rejects.toThrow(
      /wrong\.yaml: must hold options by name; write one option a line, such as output_type/,
    );
    for (const deep of ['['.repeat(5000), '- '.repeat(5000), '{a: '.repeat(101)]) {
      await expect(refused(`task: 1\nuntil:\n  ${deep}\n`)).rejects.toThrow(
        /wrong\.yaml: nests deeper than 100; write one option a line/,
      );
    }
    await expect(refused('task: [\n')).rejects.toThrow(/wrong\.yaml:\d+:\d+: /);
    await expect(readTaskFile(join(folder, 'absent.yaml'))).rejects.toThrow(
      /cannot read the task .*absent\.yaml: no such file/,
    );
  });

  it('may have names of fields in braces alone', async () => {
    await expect(
      refused(`${kQuestion.replace('{{q}}', '{{q.strip()}}')}doc_to_target: a\n`),
    ).rejects.toThrow(
      /wrong\.yaml:3: doc_to_text may have names of fields in braces alone, got \{\{q\.strip\(\)\}\}/,
    );
    await expect(refused(`${kQuestion}doc_to_target: "{% if a %}"\n`)).rejects.toThrow(
      /wrong\.yaml:4: doc_to_target may have names of fields in braces alone, got \{%/,
    );
  });

  it('has a regular expression that works, and ends', async () => {
    const file = `${kQuestion}doc_to_target: "{{a}}"\nregex_pattern: `;
    await expect(refused(`${file}"("\n`)).rejects.toThrow(
      /wrong\.yaml:5: regex_pattern is no regular expression/,
    );
    // V8 compiles this one where it has a larger stack.
    const long = await refused(`${file}"${'a?'.repeat(10_000)}"\n`).catch((error: Error) => error);
    const compiled = { metrics: expect.anything() };
    const refusal = /wrong\.yaml:5: regex_pattern is no regular expression: .*Stack overflow/;
    expect(long).toMatchObject(
      long instanceof Error ? { message: expect.stringMatching(refusal) } : compiled,
    );
    await expect(refused(`${file}"${'('.repeat(200)}${')'.repeat(200)}"\n`)).rejects.toThrow(
      /wrong\.yaml:5: regex_pattern has groups within groups/,
    );
    await expect(refused(`${file}"(?:|x?){40}(?<!^)"\n`)).rejects.toThrow(
      /wrong\.yaml:5: regex_pattern takes too long/,
    );
    const task = (await refused(`${file}"(a+)+b"\n`)) as GenerationTask;
    expect(() => task.extract({ question: '', answer: '' }, 'a'.repeat(40))).toThrow(
      /wrong\.yaml:5: regex_pattern takes too long/,
    );
  });

  it('is told from data that does not fit it', async () => {
    const task = await readTaskFile(fixturePath('scoring/capitals.yaml'));
    await expect(readItems(fixturePath('scoring/sums.jsonl'), task)).rejects.toThrow(
      /sums\.jsonl:1: there is no field "options"; the row has a, b, sum/,
    );
  });
});
