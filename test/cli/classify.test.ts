/** `--task sequence-classification` end to end on a tiny bert: train on TSV, evaluate with matrix and recall, bad input. */
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
  expect(err).toMatch(/head warmed up on 30 examples: loss [\d.]+/);
  expect(err).toMatch(/warning: svdTopK 5 is clamped to 2 = min\(6 examples, 3 outputs\) - 1/);
  expect(err).toMatch(/evaluation at step 20: loss [\d.]+ {2}accuracy [\d.]+ {2}matthews/);
  expect(err).toMatch(/completed after 100 steps .*; kept step \d+ \(accuracy 1\.0000\)\n$/);
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

it('shows a plan', async () => {
  const { code, out } = await balora(train('plan', '--dry-run'));
  expect(code).toBe(0);
  expect(out).toMatch(
    /30 examples \(sentence -> verdict\), .* by class \d+ \+ \d+ \+ \d+, longest/,
  );
});

it('says what is wrong', async () => {
  const wrong = async (...args: string[]) => (await balora(train('wrong', ...args))).err;
  expect(await wrong('--label-names', 'bad,good,x')).toMatch(
    /train\.tsv:\d+: field 'verdict': "middling" is not one of the ids 0\.\.2/,
  );
  expect(await wrong('--num-labels', '4')).toMatch(/numLabels is 4, but 3 names are given/);
  expect(await wrong('--text-field', 'text')).toMatch(/train\.tsv:2: no field 'text'/);
  expect(await wrong('--prompt-field', 'x')).toMatch(/--prompt-field has no meaning for --task/);
  expect(await wrong('--glue', 'snli')).toMatch(/--glue must be one of cola, sst2/);
  expect(await wrong('--columns', 'a,b')).toMatch(/no field 'verdict'/);
});
