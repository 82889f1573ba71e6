import { mkdtemp, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { beforeAll, expect, it } from 'vitest';
import { readItems } from '../../lib/eval/task_data.ts';
import { SCORING_TASKS, scoringTask } from '../../lib/eval/tasks/registry.ts';
import type { ChoiceItem, TextItem } from '../../lib/eval/tasks/task.ts';
import { fixturePath } from '../support/fixtures.ts';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'task-data-'));
});

async function fileOf(name: string, text: string): Promise<string> {
  const path = join(folder, name);
  await writeFile(path, text);
  return path;
}

const lines = (...rows: object[]): string => rows.map((row) => `${JSON.stringify(row)}\n`).join('');

const kArc = {
  question: 'Which is wet?',
  choices: { text: ['sand', 'water'], label: ['A', 'B'] },
  answerKey: 'B',
};
const kMmlu = { question: 'What is 1 + 1?', choices: ['1', '2', '3', '4'], answer: 1 };

it('names file, line and field of a wrong value', async () => {
  const arc = (wrong: object) => fileOf('arc.jsonl', lines(kArc, { ...kArc, ...wrong }));
  const read = async (wrong: object) => readItems(await arc(wrong), scoringTask('arc_easy'));
  await expect(read({ answerKey: 'C' })).rejects.toThrow(
    /arc\.jsonl:2: field "answerKey" must be one of the labels A, B, got "C"/,
  );
  await expect(read({ question: '' })).rejects.toThrow(
    /arc\.jsonl:2: field "question" must be a text that is not empty/,
  );
  await expect(read({ choices: { text: ['one'], label: ['A'] } })).rejects.toThrow(
    /field "choices.text" must be a list of at least two texts/,
  );
  await expect(read({ choices: [1, 2] })).rejects.toThrow(
    /field "choices" must be an object, got \[1,2\]/,
  );
  const mmlu = await fileOf('mmlu.jsonl', lines(kMmlu, { ...kMmlu, answer: 4 }));
  await expect(readItems(mmlu, scoringTask('mmlu'))).rejects.toThrow(
    /mmlu\.jsonl:2: field "answer" must be a whole number from 0 to 3, got 4/,
  );
});

it('recognises the data of another task', async () => {
  const path = await fileOf('pairs.csv', 'sent_more,sent_less\none,two\n');
  await expect(readItems(path, scoringTask('hellaswag'))).rejects.toThrow(
    /pairs\.csv:2: the task hellaswag reads the fields activity_label, .* lacks .*; it looks like data of crows_pairs; its fields are sent_more, sent_less/,
  );
  const text = await fileOf('notes.txt', 'Some text.');
  await expect(readItems(text, scoringTask('mmlu'))).rejects.toThrow(
    /plain text, which the task mmlu cannot read/,
  );
});

it('reads the same items of every kind of file', async () => {
  const task = scoringTask('mmlu');
  const wanted = await readItems(await fileOf('a.jsonl', lines(kMmlu, kMmlu)), task);
  expect(
    await readItems(await fileOf('a.json', `\uFEFF${JSON.stringify([kMmlu, kMmlu])}`), task),
  ).toEqual(wanted);
  const csv = 'What is 1 + 1?,1,2,3,4,B\r\n'.repeat(2);
  expect(await readItems(await fileOf('a.csv', csv), task)).toEqual(wanted);
  expect(await readItems(await fileOf('a.jsonl', lines(kMmlu, kMmlu)), task, { limit: 1 })).toEqual(
    wanted.slice(0, 1),
  );
});

it('reads the original files of ARC and TruthfulQA', async () => {
  const stem = {
    question: {
      stem: 'Which is wet?',
      choices: [
        { text: 'sand', label: 'A' },
        { text: 'water', label: 'B' },
      ],
    },
    answerKey: 'B',
  };
  const arc = scoringTask('arc_challenge');
  expect(await readItems(await fileOf('o.jsonl', lines(stem)), arc)).toEqual(
    await readItems(await fileOf('h.jsonl', lines(kArc)), arc),
  );
  const targets = { question: 'Is it wet?', mc1_targets: { yes: 1, no: 0 } };
  const path = await fileOf('mc_task.json', JSON.stringify([targets]));
  const [item] = await readItems(path, scoringTask('truthfulqa_mc1'));
  expect(item).toMatchObject({ choices: ['yes', 'no'], gold: [0] });
  const wrong = await fileOf(
    'mc_wrong.json',
    JSON.stringify([{ ...targets, mc1_targets: { yes: 0, no: 0 } }]),
  );
  await expect(readItems(wrong, scoringTask('truthfulqa_mc1'))).rejects.toThrow(
    /mc_wrong\.json:1 \(row 0\): field "mc1_targets" must be answers with a label 0 or 1 each/,
  );
});

it('refuses a JSON file that is no array of objects', async () => {
  const task = scoringTask('mmlu');
  await expect(readItems(await fileOf('b.json', '[1, 2]'), task)).rejects.toThrow(
    /b\.json:1 \(row 0\): a row must be a JSON object, got a number/,
  );
  await expect(readItems(await fileOf('c.json', '[{"a": }]'), task)).rejects.toThrow(
    /c\.json:1 \(row 0\): not valid JSON/,
  );
});

it('removes the spaces of WikiText, and counts the original', async () => {
  const page =
    ' = Title = \n\n It was 1 @,@ 234 @.@ 5 m , ( or so ) , on a 3 @-@ day trip ; " fine " . \n';
  const [item] = await readItems(await fileOf('w.jsonl', lines({ page })), scoringTask('wikitext'));
  expect(item).toEqual({
    text: ' = Title =\n\nIt was 1,234.5 m, (or so), on a 3-day trip; "fine".\n',
    original: page,
  });
});

it('divides a raw file of WikiText into pages', async () => {
  const items = await readItems(fixturePath('scoring/wikitext.raw'), scoringTask('wikitext'));
  expect(items.map((item) => (item as TextItem).original?.split('\n')[0])).toEqual([
    ' = First page = ',
    ' = Second page = ',
  ]);
  const [first] = items as readonly TextItem[];
  expect(first?.original).toMatch(/ = = A section = = /);
  expect(first?.text).toBe(
    ' = First page =\n\nText of it, 1,000 words long.\n\n== A section ==\n\nMore text.\n',
  );
});

it('refuses an example of GSM8K whose answer is no number', async () => {
  const of = (answer: string) => fileOf('g.jsonl', lines({ question: 'How many?', answer }));
  for (const name of ['gsm8k', 'gsm8k_alpaca', 'gsm8k_peft']) {
    for (const answer of ['Many.', 'Many.\n#### many', '#### ']) {
      await expect(readItems(await of(answer), scoringTask(name))).rejects.toThrow(
        /g\.jsonl:1: field "answer" must be a solution that ends in "#### " and a number/,
      );
    }
    expect(await readItems(await of('#### -1,250'), scoringTask(name))).toHaveLength(1);
  }
});

it('says where a file has no row of the part', async () => {
  const row = { task_id: 600, text: 'a', code: 'b', test_list: ['c'] };
  await expect(readItems(await fileOf('m.jsonl', lines(row)), scoringTask('mbpp'))).rejects.toThrow(
    /m\.jsonl has no items of the task mbpp/,
  );
});

it('cleans the texts of HellaSwag', async () => {
  const row = {
    ...{
      activity_label: 'Tea',
      ctx_a: 'A man boils water. [header] Now',
      ctx_b: 'he IS done. [title] Next',
      label: '1',
    },
    endings: [' waits.  [step] Long.', 'leaves.'],
  };
  const [item] = await readItems(await fileOf('h2.jsonl', lines(row)), scoringTask('hellaswag'));
  const { context, choices } = item as ChoiceItem;
  expect(context).toBe('Tea: A man boils water. Now He is done.. next');
  expect(choices).toEqual(['waits.  Long.', 'leaves.']);
});

it('has names, versions and fields for every task', () => {
  const names = SCORING_TASKS.map(({ name }) => name);
  expect(new Set(names).size).toBe(names.length);
  for (const { fields, version } of SCORING_TASKS) {
    expect(version).toBeGreaterThan(0);
    expect(fields[0]?.length).toBeGreaterThan(0);
  }
  expect(() => scoringTask('mmul')).toThrow(/no task "mmul"; known: gsm8k/);
});
