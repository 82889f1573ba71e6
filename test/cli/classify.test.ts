/**
 * `--task sequence-classification` end to end on a tiny bert: training on TSV, evaluation with confusion
 * matrix and recall, bad input.
 */
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { balora } from '../support/run_cli.ts';
import { tinyRows, writeTinyClassifier } from '../support/tiny_classifier.ts';

let folder: string;
let model: string;
let data: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'balora-classify-'));
  model = join(folder, 'model');
  data = join(folder, 'train.tsv');
  await writeTinyClassifier(model);
  const names = ['bad', 'middling', 'good'];
  const lines = tinyRows(30).map(({ text, label }) => `${names[label]}\t${text}`);
  await writeFile(data, `verdict\tsentence\n${lines.join('\n')}\n`);
});
afterAll(() => rm(folder, { recursive: true }));

const kTask = ['--task', 'sequence-classification'];
const kFields = ['--label-field', 'verdict', '--label-names', 'bad,middling,good'];
const train = (output: string, ...more: string[]) => [
  ...['train', ...kTask, '--model', model, '--data', data, '--output', join(folder, output)],
  ...[...kFields, '--num-labels', '3', '--r', '4', '--per-device-train-batch-size', '6'],
  ...['--learning-rate', '0.01', '--num-train-epochs', '20', ...more],
];

it('trains, keeps the best step, and evaluates', async () => {
  const { code, err } = await balora(
    train('out', '--eval-data', data, '--eval-steps', '20', '--head-warmup-epochs', '2'),
  );
  expect(err).toMatch(/head trained on 30 examples before tuning: loss [\d.]+/);
  expect(err).toMatch(/warning: --svd-top-k 5 is clamped to 2 = min\(6 examples, 3 outputs\) - 1/);
  expect(err).toMatch(/evaluation at step 20: loss [\d.]+ {2}accuracy [\d.]+ {2}matthews/);
  expect(err).toMatch(/completed after 100 steps .*; exported step \d+ \(accuracy 1\.0000\)\n$/);
  expect(code).toBe(0);
  const config = JSON.parse(await readFile(join(folder, 'out', 'adapter_config.json'), 'utf8'));
  expect(config).toMatchObject({ task_type: 'SEQ_CLS', modules_to_save: ['classifier', 'score'] });

  const evaluate = ['evaluate', ...kTask, '--model', model, '--data', data, ...kFields];
  const adapter = ['--adapter', join(folder, 'out')];
  const { out } = await balora([...evaluate, ...adapter]);
  expect(out).toMatch(/^accuracy +1\.0000$/m);
  expect(out).toMatch(/^class +precision +recall +f1$/m);
  expect(out).toMatch(/^middling +1\.0000 +1\.0000 +1\.0000$/m);
  expect(out).toMatch(/^label \\ predicted +bad +middling +good$/m);
  const json = JSON.parse((await balora([...evaluate, ...adapter, '--json'])).out);
  expect(json).toMatchObject({ problemType: 'single_label_classification', examples: 30 });
  expect(json.predictions).toEqual(json.labels);
});

it('takes a checkpoint as the adapter, with its head, the names of its labels and its task', async () => {
  const checkpoint = join(folder, 'out', 'run', 'checkpoints', 'step-100');
  const ofLast = ['--label-field', 'verdict', '--adapter', checkpoint];
  const last = await balora([
    ...['evaluate', ...kTask, '--model', model, '--data', data, ...ofLast],
  ]);
  expect(last.err).toMatch(/^the label ids of .*step-100 stand for bad, middling, good; /);
  expect(last.out).toMatch(/^label \\ predicted +bad +middling +good$/m);
  const merged = join(folder, 'merged-checkpoint');
  const args = ['merge', '--model', model, '--adapter', checkpoint, '--output', merged];
  expect((await balora(args)).code).toBe(0);
  const { id2label } = JSON.parse(await readFile(join(merged, 'config.json'), 'utf8'));
  expect(id2label).toEqual({ 0: 'bad', 1: 'middling', 2: 'good' });
});

it('evaluates by the labels of the trained head', async () => {
  const ids = tinyRows(30).map(({ text, label }) => `${label}\t${text}`);
  const [all, part] = [join(folder, 'ids.tsv'), join(folder, 'part.tsv')];
  await writeFile(all, `label\tsentence\n${ids.join('\n')}\n`);
  await writeFile(part, `label\tsentence\n${ids.filter((line) => line[0] !== '2').join('\n')}\n`);
  const out = join(folder, 'by-head');
  const tuned = ['train', ...kTask, '--model', model, '--data', all, '--output', out];
  expect((await balora([...tuned, '--r', '4', '--max-steps', '2'])).code).toBe(0);
  const evaluate = ['evaluate', ...kTask, '--model', model, '--adapter', out, '--data'];
  // Held-out data need not contain every class.
  const lacking = await balora([...evaluate, part]);
  expect(lacking.err).toMatch(/part\.tsv: no example has the label 2/);
  expect(lacking.out).toMatch(/^label \\ predicted +0 +1 +2$/m);
  expect((await balora([...evaluate, all, '--num-labels', '2'])).err).toMatch(
    /error: the head in .*by-head has 3 labels, and --num-labels says 2; leave --num-labels out/,
  );
  expect((await balora([...evaluate, all, '--label-names', 'a,b'])).err).toMatch(
    /error: the head in .*by-head has 3 labels, and --label-names says 2; leave --label-names out/,
  );
  await writeFile(part, 'label\tsentence\n3\ta good film\n');
  expect((await balora([...evaluate, part])).err).toMatch(
    /part\.tsv:2: field 'label': must be one of the ids 0\.\.2 \(--num-labels 3\), got "3"/,
  );
});

it('evaluates by the label names of the training data, also where the held-out data lacks one', async () => {
  const out = join(folder, 'named');
  const tuned = ['train', ...kTask, '--model', model, '--data', data, '--output', out];
  const field = ['--label-field', 'verdict'];
  expect((await balora([...tuned, ...field, '--r', '4', '--max-steps', '2'])).code).toBe(0);
  const part = join(folder, 'middling.tsv');
  const rows = (await readFile(data, 'utf8')).split('\n').filter((line) => !line.startsWith('bad'));
  await writeFile(part, rows.join('\n'));
  const evaluate = ['evaluate', ...kTask, '--model', model, '--adapter', out, ...field, '--data'];
  // Sorted, as in training: bad 0, good 1, middling 2. Without bad, good would be 0.
  const { out: text, err } = await balora([...evaluate, part]);
  expect(err).toMatch(/no example has the label bad/);
  expect(text).toMatch(/^label \\ predicted +bad +good +middling$/m);
  expect(text).toMatch(/^bad +0 +0 +0$/m);
  await writeFile(part, rows.join('\n').replace('good\t', 'superb\t'));
  expect((await balora([...evaluate, part])).err).toMatch(
    /must be one of the ids 0\.\.2 .* names bad, good, middling, got "superb"/,
  );
});

it('initialises a new head on request, and merges it after training', async () => {
  const ids = tinyRows(30).map(({ text, label }) => `${label % 2}\t${text}`);
  const two = join(folder, 'two.tsv');
  await writeFile(two, `label\tsentence\n${ids.join('\n')}\n`);
  const [out, merged] = [join(folder, 'two'), join(folder, 'merged')];
  const tuned = ['train', ...kTask, '--model', model, '--data', two, '--output', out];
  expect((await balora(tuned)).err).toMatch(
    /head in the checkpoint \(classifier\.weight\) has 3 labels, --num-labels asks for 2; .*--new-head/,
  );
  const { err, code } = await balora([...tuned, '--new-head', '--r', '4', '--max-steps', '3']);
  expect(err).toMatch(/^newly initialized: classifier\.weight, classifier\.bias$/m);
  expect(code).toBe(0);
  const evaluate = (...from: string[]) =>
    balora(['evaluate', ...kTask, ...from, '--data', two, '--json']);
  const adapted = JSON.parse((await evaluate('--model', model, '--adapter', out)).out);
  const merge = ['merge', '--model', model, '--adapter', out, '--output', merged];
  expect((await balora(merge)).code).toBe(0);
  const whole = await evaluate('--model', merged);
  expect(whole.err).not.toMatch(/no trained head/);
  expect(JSON.parse(whole.out).loss).toBeCloseTo(adapted.loss, 5);
});

it('warns that results with a random head mean nothing', async () => {
  const bare = join(folder, 'bare');
  await writeTinyClassifier(bare, { head: false });
  const args = [...kTask, '--model', bare, '--data', data, ...kFields];
  const { err } = await balora(['evaluate', ...args]);
  expect(err).toMatch(
    /bare has no trained head \(newly initialized: classifier\.weight.*\), so the numbers mean nothing/,
  );
  const tuned = async (...more: string[]) =>
    (await balora(['train', ...args, '--r', '4', '--max-steps', '1', ...more])).err;
  const noise =
    /^warning: the head is newly initialized, so the consistency term pulls the model towards noise/m;
  expect(await tuned()).toMatch(noise);
  expect(await tuned('--head-warmup-epochs', '1')).not.toMatch(noise);
  expect(await tuned('--consistency-weight', '0')).not.toMatch(noise);
});

it('prints the plan of a dry run', async () => {
  const { code, out } = await balora(train('plan', '--dry-run'));
  expect(code).toBe(0);
  expect(out).toMatch(
    /30 examples \(sentence -> verdict\), .* by class \d+ \+ \d+ \+ \d+, longest/,
  );
});

it('reports bad input', async () => {
  const wrong = async (...args: string[]) => (await balora(train('wrong', ...args))).err;
  expect(await wrong('--label-names', 'bad,good,x')).toMatch(
    /train\.tsv:\d+: field 'verdict': must be one of the ids 0\.\.2 .*, got "middling"/,
  );
  expect(await wrong('--num-labels', '4')).toMatch(/--num-labels is 4, but 3 names are given/);
  expect(await wrong('--text-field', 'text')).toMatch(/train\.tsv:2: no field 'text'/);
  expect(await wrong('--prompt-field', 'x')).toMatch(/--prompt-field has no meaning for --task/);
  expect(await wrong('--glue', 'snli')).toMatch(/--glue must be one of cola, sst2/);
  expect(await wrong('--columns', 'a,b')).toMatch(/no field 'verdict'.* --columns label,sentence/);
  const long = join(folder, 'long.tsv');
  const rows = ['bad', 'middling', 'good'].map((name) => `${name}\t${'a film '.repeat(20)}`);
  await writeFile(long, `verdict\tsentence\n${rows.join('\n')}\n`);
  // Too long sequences are an error before the first step, also where only the held-out data has them.
  const held = await wrong('--eval-data', long);
  expect(held).toMatch(
    /a sequence of 42 tokens is longer than the position table of this bert model \(26\)/,
  );
  expect(held).toMatch(/cut the data with --max-length 26$/m);
  expect(held).not.toMatch(/^step/m);
});
