import { spawnSync } from 'node:child_process';
import { cp, mkdir, mkdtemp, readdir, readFile, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { beforeAll, expect, it } from 'vitest';
import { folderNames } from '../../lib/cli/score_models.ts';
import type { TaskScore } from '../../lib/cli/score_view.ts';
import { fixturePath } from '../support/fixtures.ts';
import { balora } from '../support/run_cli.ts';
import { writeTinyCheckpoint } from '../support/tiny_checkpoint.ts';

const kPairs = 'sent_more,sent_less,bias_type\nabc,abd,age\nbcd,ecd,age\nabe,ace,gender\n';
const kSums = [1, 2, 3]
  .map((n) => JSON.stringify({ question: `a${n}`, answer: `b\n#### ${n}` }))
  .join('\n');

let [folder, model, data] = ['', '', ''];
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'score-'));
  [model, data] = [join(folder, 'model'), join(folder, 'data')];
  await writeTinyCheckpoint(model);
  await mkdir(join(data, 'gsm8k'), { recursive: true });
  await writeFile(join(data, 'crows_pairs.csv'), kPairs);
  await writeFile(join(data, 'gsm8k', 'test.jsonl'), kSums);
  await writeFile(join(data, 'gsm8k', 'train.jsonl'), kSums);
});

const score = (...options: string[]) =>
  balora(['evaluate', '--model', model, '--data', data, ...options]);

async function results(...options: string[]): Promise<TaskScore[]> {
  const { out, err, code } = await score(...options, '--json');
  expect(code, err).toBe(0);
  return JSON.parse(out) as TaskScore[];
}

it('prints a table with intervals', async () => {
  const { out, code } = await score('--tasks', 'crows_pairs,gsm8k_peft', '--max-new-tokens', '4');
  expect(code).toBe(0);
  const lines = out.trim().split('\n');
  expect(lines[0]).toMatch(/^task +metric +items +model +95 %$/);
  expect(lines[1]).toMatch(/^crows_pairs +pct_stereotype +3 +\d\.\d{4} +\d\.\d{4} to \d\.\d{4}$/);
  expect(lines[3]).toMatch(/^gsm8k_peft +accuracy +3 +0\.0000 +0\.0000 to 0\.0000$/);
  const one = await score('--tasks', 'crows_pairs', '--limit', '1');
  expect(one.out).toMatch(/^crows_pairs +pct_stereotype +1 +\d\.\d{4} +–$/m);
});

it('asks with examples, and tells how many prompts are longer than the context', async () => {
  const few = ['--tasks', 'gsm8k', '--num-fewshot', '3', '--max-new-tokens', '4'];
  const [found] = await results(...few);
  expect(found).toMatchObject({ task: 'gsm8k', items: 3, cutItems: 0 });
  const { err, out } = await score(...few, '--max-new-tokens', '110', '--json');
  expect(err).toMatch(/gsm8k: 3 of 3 prompts are longer than the context of the model/);
  expect(JSON.parse(out)[0].cutItems).toBe(3);
  const lacking = await score('--tasks', 'gsm8k', '--max-new-tokens', '4');
  expect(lacking.err).toMatch(/gsm8k is asked with 5 examples, and there are 3 to choose from/);
});

it('goes on from the records of a run that was stopped, with the same numbers', async () => {
  const output = join(folder, 'records');
  const tasks = ['--tasks', 'crows_pairs', '--output', output];
  const whole = await results('--tasks', 'crows_pairs');
  await results(...tasks, '--limit', '2');
  const path = join(output, 'crows_pairs.jsonl');
  const first = await readFile(path, 'utf8');
  expect(first.trim().split('\n')).toHaveLength(3);
  // The last line of a killed process may be cut off.
  await writeFile(path, first.slice(0, -10));
  const { err, out } = await score(...tasks, '--json');
  expect(err).toMatch(/crows_pairs: 1 items were scored before/);
  expect(JSON.parse(out)[0].metrics.pct_stereotype).toEqual(whole[0]?.metrics.pct_stereotype);
  const lines = (await readFile(path, 'utf8'))
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));
  expect(lines.slice(1).map(({ index }) => index)).toEqual([0, 1, 2]);
  expect(lines[1]).toMatchObject({ isCut: false, groups: { bias_type: 'age' }, gold: [0] });
  expect(lines[1].choices[0].text).toBe('abc');
});

it('does not mix records of other data or settings, or overwrite another file', async () => {
  const output = join(folder, 'mixed');
  const args = ['--tasks', 'gsm8k_peft', '--output', output, '--max-new-tokens'];
  await results(...args, '2');
  expect((await score(...args, '3')).err).toMatch(
    /gsm8k_peft\.jsonl has records of another --max-new-tokens \(--max-new-tokens: 2, now 3\); choose another --output/,
  );
  const foreign = join(folder, 'foreign');
  await mkdir(foreign);
  await writeFile(join(foreign, 'gsm8k_peft.jsonl'), 'notes of mine\n');
  expect((await score('--tasks', 'gsm8k_peft', '--output', foreign)).err).toMatch(
    /gsm8k_peft\.jsonl is no file of records; choose another --output/,
  );
  expect(await readFile(join(foreign, 'gsm8k_peft.jsonl'), 'utf8')).toBe('notes of mine\n');
});

/** Trains an adapter, and returns its folder. */
async function trainedAdapter(name: string, learningRate: number): Promise<string> {
  const adapter = join(folder, name);
  const train = join(folder, 'train.jsonl');
  await writeFile(train, `${JSON.stringify({ prompt: 'abc', response: 'abd' })}\n`.repeat(4));
  const trained = await balora([
    ...['train', '--model', model, '--data', train, '--output', adapter, '--method', 'lora'],
    ...['--max-steps', '3', '--learning-rate', String(learningRate)],
  ]);
  expect(trained.code, trained.err).toBe(0);
  return adapter;
}

it('shows a base beside its adapter', async () => {
  const adapter = await trainedAdapter('adapter', 0.05);
  const both = ['--tasks', 'crows_pairs', '--adapter', adapter, '--base'];
  const found = await results(...both);
  const [alone] = await results('--tasks', 'crows_pairs');
  expect(found.map((one) => one.model)).toEqual(['base', 'adapter']);
  expect(found[0]?.metrics).toEqual(alone?.metrics);
  expect(found[1]?.metrics.likelihood_diff).not.toEqual(alone?.metrics.likelihood_diff);
  expect((await score(...both)).out).toMatch(/items +base +95 % +adapter +95 %/);
});

it('reads the file that --data names, and says what it looks for in a folder', async () => {
  const file = `crows_pairs=${join(data, 'crows_pairs.csv')}`;
  const { code } = await balora([
    'evaluate',
    '--model',
    model,
    '--data',
    file,
    '--tasks',
    'crows_pairs',
  ]);
  expect(code).toBe(0);
  const wrong = await balora(['evaluate', '--model', model, '--data', file, '--tasks', 'mmlu']);
  expect(wrong.err).toMatch(/--data: there is no file for mmlu; give mmlu=FILE/);
  expect((await score('--tasks', 'mmlu')).err).toMatch(
    /has no items of the task mmlu: none of mmlu, mmlu\/test, mmlu\/validation/,
  );
  const path = join(data, 'crows_pairs.csv');
  const bare = ['evaluate', '--model', model, '--tasks', 'crows_pairs'];
  expect((await balora([...bare, '--data', path])).err).toContain(
    `--data: ${path} is a file; say of which task it is: --data crows_pairs=${path}`,
  );
  const shots = ['--num-fewshot', '1', '--data', data, '--fewshot-data', path];
  expect((await balora([...bare, ...shots])).err).toContain(
    `--fewshot-data: ${path} is a file; say of which task it is: --fewshot-data crows_pairs=${path}`,
  );
});

it('checks the names of all tasks before it reads the data of one', async () => {
  // There is no file of mmlu, which is told only where all names are right.
  expect((await score('--tasks', 'mmlu,gsm9k')).err).toMatch(/there is no task "gsm9k"/);
  expect((await score('--tasks', 'mmlu', '--limit', 'gsm8k=1')).err).toMatch(
    /--limit: gsm8k is not among the tasks mmlu/,
  );
});

it('refuses options that do not go together', async () => {
  const bare = await balora(['evaluate', '--model', model]);
  expect(bare.err).toMatch(/--data is required \(held-out data/);
  expect((await score('--limit', '2')).err).toMatch(/--limit needs --tasks/);
  expect((await score('--tasks', 'gsm8k', '--max-length', '9')).err).toMatch(
    /--max-length has no meaning beside --tasks/,
  );
  expect((await score('--tasks', 'gsm8k', '--base')).err).toMatch(/--base needs --adapter/);
  expect((await score('--tasks', 'gsm8k', '--task', 'seq2seq-lm')).err).toMatch(
    /--tasks is for causal language models/,
  );
  expect((await score('--tasks', 'gsm9k')).err).toMatch(/there is no task "gsm9k"; known: gsm8k/);
});

const kOwnTasks = ['capitals.yaml', 'sums.yaml'].map((name) => fixturePath(`scoring/${name}`));
const kFixtureTasks = [
  ...['bbq', 'stereoset', 'winogender', 'math', 'hendrycks_math', 'humaneval', 'mbpp', 'wikitext'],
  ...kOwnTasks,
];

it('scores every task of a file of its usual form, with intervals, also from the records of a part', async () => {
  const fixtures = fixturePath('scoring');
  const args = (output: string) => [
    ...['evaluate', '--model', model, '--data', fixtures, '--tasks', kFixtureTasks.join(',')],
    ...['--max-new-tokens', '4', '--output', join(folder, output), '--json'],
  ];
  const run = async (...given: string[]) => {
    const { out, err, code } = await balora(given);
    expect(code, err).toBe(0);
    return { err, scores: JSON.parse(out) as TaskScore[] };
  };
  const whole = await run(...args('whole'));
  await run(...args('parts'), '--limit', '2');
  const { err, scores } = await run(...args('parts'));
  expect(scores.map(({ task }) => task)).toEqual([
    ...kFixtureTasks.slice(0, -2),
    ...['capitals', 'sums'],
  ]);
  for (const [i, { task, items, metrics }] of scores.entries()) {
    expect(err).toContain(`${task}: 2 items were scored before`);
    expect(items, task).toBe(task === 'wikitext' ? 2 : 5);
    expect(metrics, task).toEqual(whole.scores[i]?.metrics);
    const numbers = Object.values(metrics);
    expect(numbers.length, task).toBeGreaterThan(0);
    for (const { value, interval } of numbers) {
      if (value === null) expect(interval, task).toBeNull();
      else {
        const [low, high] = interval as readonly [number, number];
        expect(low - 1e-9, task).toBeLessThanOrEqual(value);
        expect(high + 1e-9, task).toBeGreaterThanOrEqual(value);
      }
    }
  }
  expect(await readdir(join(folder, 'parts'))).toEqual(await readdir(join(folder, 'whole')));
  expect(err).toMatch(/sums \(model\): \d of 5 outputs have no answer/);
  expect(err).toMatch(/humaneval \(model\): the programs are in .*; they were not run/);
  expect(scores.find(({ task }) => task === 'humaneval')?.metrics).toEqual({
    'pass@1': { value: null, interval: null },
  });
  const samples = await readFile(join(folder, 'whole', 'mbpp.samples.jsonl'), 'utf8');
  const lines = samples
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));
  expect(lines.map(({ task_id }) => task_id)).toEqual([
    ...['Mbpp/11', 'Mbpp/12', 'Mbpp/13', 'Mbpp/14', 'Mbpp/510'],
  ]);
  expect(lines[0]).toMatchObject({ completion: expect.any(String), solution: expect.any(String) });
});

const kNamespaces =
  spawnSync('unshare', ['--user', '--map-root-user', '--mount', '--net', '--pid', '--fork', 'true'])
    .status === 0;

it.skipIf(!kNamespaces)(
  'runs programs where that is allowed, and generates none again',
  async () => {
    const output = join(folder, 'programs');
    const args = (...more: string[]) =>
      balora([
        ...['evaluate', '--model', model, '--data', fixturePath('scoring'), '--tasks', 'humaneval'],
        ...['--max-new-tokens', '4', '--output', output, '--json', ...more],
      ]);
    expect((await args()).code).toBe(0);
    const { out, err, code } = await args('--allow-code-execution');
    expect(code, err).toBe(0);
    expect(err).toMatch(/warning: programs that the model writes are run: without network/);
    expect(err).toMatch(/humaneval: 5 items were scored before/);
    expect((JSON.parse(out) as TaskScore[])[0]?.metrics['pass@1']).toEqual({
      value: 0,
      interval: [0, 0],
    });
    const records = (await readFile(join(output, 'humaneval.jsonl'), 'utf8')).trim().split('\n');
    expect(records).toHaveLength(1 + 5 + 5);
    expect(JSON.parse(records.at(-1) as string)).toMatchObject({ index: 4, outcome: 'failed' });
  },
);

it('compares adapters side by side, with the measures of their collapse', async () => {
  const adapters = [await trainedAdapter('one/final', 0.05), await trainedAdapter('two/final', 2)];
  const texts = join(folder, 'texts');
  await cp(data, texts, { recursive: true });
  await writeFile(join(texts, 'documents.jsonl'), `${JSON.stringify({ text: 'abcde abcde' })}\n`);
  const output = join(folder, 'compared');
  const args = [
    ...['evaluate', '--model', model, '--data', texts, '--compare', ...adapters, '--base'],
    ...['--tasks', 'crows_pairs,gsm8k_peft,documents', '--max-new-tokens', '4'],
  ];
  const json = await balora([...args, '--json', '--output', output]);
  expect(json.code, json.err).toBe(0);
  const scores = JSON.parse(json.out) as TaskScore[];
  const names = ['base', 'one/final', 'two/final'];
  expect([...new Set(scores.map(({ model: name }) => name))]).toEqual(names);
  const of = (name: string, task: string) =>
    scores.find((one) => one.model === name && one.task === task);
  for (const name of names) {
    expect(of(name, 'gsm8k_peft')?.collapse).toMatchObject({
      distinct_1: expect.any(Number),
      self_bleu_4: expect.any(Number),
      word_entropy: expect.any(Number),
    });
    const { collapse = {} } = of(name, 'documents') ?? {};
    expect(collapse.effective_rank).toBeGreaterThanOrEqual(1);
    expect(collapse.token_entropy).toBeGreaterThan(0);
    if (name === 'base') expect(collapse).not.toHaveProperty('kl_to_base');
    else expect(collapse.kl_to_base).toBeGreaterThan(0);
  }
  expect(of('base', 'weights')).toBeUndefined();
  expect(of('two/final', 'weights')).toMatchObject({
    items: expect.any(Number),
    metrics: { intruder_dimensions: { value: expect.any(Number), interval: null } },
  });
  expect(await readdir(output)).toEqual([
    ...['base', 'one-final', 'two-final'].flatMap((name) => `crows_pairs.${name}.jsonl`),
    ...['base', 'one-final', 'two-final'].flatMap((name) => `documents.${name}.jsonl`),
    ...['base', 'one-final', 'two-final'].flatMap((name) => `gsm8k_peft.${name}.jsonl`),
  ]);
  const table = await balora([...args, '--no-intruders']);
  expect(table.out).toMatch(
    /^task +metric +items +base +95 % +one\/final +95 % +two\/final +95 %$/m,
  );
  expect(table.out).toMatch(/^documents +kl_to_base +1 +\d\.\d+ +\d\.\d+$/m);
  expect(table.out).not.toMatch(/intruder/);
  // The base of a comparison has the numbers of the model alone.
  const [alone] = await results('--tasks', 'crows_pairs');
  expect(of('base', 'crows_pairs')?.metrics).toEqual(alone?.metrics);
});

it('limits all tasks, or each by its name', async () => {
  const tasks = ['--tasks', 'crows_pairs,gsm8k_peft', '--max-new-tokens', '2', '--limit'];
  const items = async (limit: string) => (await results(...tasks, limit)).map((one) => one.items);
  expect(await items('2')).toEqual([2, 2]);
  expect(await items('gsm8k_peft=1')).toEqual([3, 1]);
  expect(await items('gsm8k_peft=1,crows_pairs=2')).toEqual([2, 1]);
  expect((await score(...tasks, 'mmlu=1')).err).toMatch(
    /--limit: mmlu is not among the tasks crows_pairs, gsm8k_peft/,
  );
  expect((await score(...tasks, 'gsm8k_peft=0')).err).toMatch(
    /--limit must be a whole number >= 1, or name=n,name=n/,
  );
});

it('names compared folders by what differs', () => {
  expect(folderNames(['runs/a/', 'runs/b'])).toEqual(['a', 'b']);
  expect(folderNames(['runs/a/final', 'runs/b/final'])).toEqual(['a/final', 'b/final']);
  expect(folderNames(['runs/base'])).toEqual(['runs/base']);
  expect(() => folderNames(['a', 'a/'])).toThrow(/--compare: two of the folders are the same/);
});

it('refuses options of comparisons and programs that do not go together', async () => {
  const crows = ['--tasks', 'crows_pairs'];
  expect((await score(...crows, '--compare', 'a', '--adapter', 'b')).err).toMatch(
    /--adapter has no meaning beside --compare/,
  );
  expect((await score('--compare', 'a')).err).toMatch(/--compare needs --tasks/);
  expect((await score(...crows, '--no-intruders')).err).toMatch(/--intruders needs --compare/);
  expect((await score(...crows, '--unsafe')).err).toMatch(/--unsafe needs --allow-code-execution/);
  const humaneval = await score('--tasks', 'humaneval');
  expect(humaneval.err).toMatch(/humaneval writes a file of programs; say where with --output/);
  const own = await score('--tasks', 'nowhere.yaml');
  expect(own.err).toMatch(/cannot read the task nowhere\.yaml: no such file/);
  const named = `gsm8k=${join(data, 'gsm8k', 'test.jsonl')}`;
  const examples = await balora([
    'evaluate',
    '--model',
    model,
    '--data',
    named,
    '--tasks',
    'gsm8k',
    '--num-fewshot',
    '2',
  ]);
  expect(examples.err).toMatch(/--fewshot-data: gsm8k is asked with 2 examples; give their file/);
});
