import { mkdir, mkdtemp, readFile, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { beforeAll, expect, it } from 'vitest';
import type { TaskScore } from '../../lib/cli/score_view.ts';
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

it('shows a base beside its adapter', async () => {
  const adapter = join(folder, 'adapter');
  const train = join(folder, 'train.jsonl');
  await writeFile(train, `${JSON.stringify({ prompt: 'abc', response: 'abd' })}\n`.repeat(4));
  const trained = await balora([
    ...['train', '--model', model, '--data', train, '--output', adapter, '--method', 'lora'],
    ...['--max-steps', '3', '--learning-rate', '0.05'],
  ]);
  expect(trained.code, trained.err).toBe(0);
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
