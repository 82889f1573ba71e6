/**
 * `--task sequence-classification` for every kind of task and file, each trained for some steps and evaluated on a tiny bert: GLUE
 * tasks by name, regression, multi-label, pairs of texts; TSV with and without header, JSON Lines, Parquet.
 */
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { trainedHead } from '../../lib/cli/tasks/classifier_load.ts';
import { fixturePath } from '../support/fixtures.ts';
import { balora } from '../support/run_cli.ts';
import { tinyRows, writeTinyClassifier } from '../support/tiny_classifier.ts';

let folder: string;
let model: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'balora-tasks-'));
  model = join(folder, 'model');
  await writeTinyClassifier(model);
});
afterAll(() => rm(folder, { recursive: true }));

const kTask = ['--task', 'sequence-classification'];

async function written(name: string, lines: readonly string[]): Promise<string> {
  const path = join(folder, name);
  await writeFile(path, `${lines.join('\n')}\n`);
  return path;
}

/** Trains six steps in micro-batches of 5, evaluating after every other one. @returns the adapter's folder and stderr */
async function train(name: string, data: string, ...options: string[]) {
  const output = join(folder, name);
  const { code, err } = await balora([
    ...['train', ...kTask, '--model', model, '--data', data, '--output', output, '--r', '4'],
    ...['--per-device-train-batch-size', '5', '--learning-rate', '0.01', '--max-steps', '6'],
    ...['--eval-data', data, '--eval-steps', '2', ...options],
  ]);
  expect(err).toMatch(/completed after 6 steps/);
  expect(code).toBe(0);
  return { output, err };
}
const evaluate = async (adapter: string, data: string, ...options: string[]) => {
  const args = ['evaluate', ...kTask, '--model', model, '--adapter', adapter, '--data', data];
  const [text, json] = [
    await balora([...args, ...options]),
    await balora([...args, ...options, '--json']),
  ];
  expect([text.code, json.code]).toEqual([0, 0]);
  return { text: text.out, json: JSON.parse(json.out) };
};
/** The best value of a metric among the three evaluations that a run reports. */
function bestOf(err: string, metric: string): number {
  const found = [...err.matchAll(new RegExp(`evaluation at step .* ${metric} (-?[\\d.]+)`, 'g'))];
  expect(found).toHaveLength(3);
  return Math.max(...found.map(([, value]) => Number(value)));
}
const runOf = async (adapter: string) =>
  JSON.parse(await readFile(join(adapter, 'run', 'config.json'), 'utf8'));

it('a GLUE task from its original file without a header, with the best step by its own metric', async () => {
  const lines = tinyRows(20).map(({ text, label }) => `src\t${Number(label > 0)}\t\t${text}`);
  const data = await written('cola.tsv', lines);
  const options = ['--glue', 'cola', '--columns', 'source,label,star,sentence'];
  const { output, err } = await train(
    'cola',
    data,
    ...options,
    ...['--new-head', '--variant', '2024', '--group-by-length'],
  );
  const best = bestOf(err, 'matthews');
  expect(err).toContain(`(matthews ${best.toFixed(4)})`);
  expect((await runOf(output)).values).toMatchObject({
    glue: 'cola',
    variant: '2024',
    'group-by-length': true,
    'label-names': ['unacceptable', 'acceptable'],
  });
  const { text, json } = await evaluate(output, data, ...options);
  expect(text).toMatch(/^label \\ predicted +unacceptable +acceptable$/m);
  expect(text).toMatch(/^f1AccuracyMean +[\d.]+$/m);
  expect(json.metrics.matthews).toBeCloseTo(best, 4);
});

it('regression on pairs of texts, in bf16', async () => {
  const lines = tinyRows(20).map(
    ({ text, label }, i) =>
      `${i}\t${text}\tthe plot was ${['bad', 'so', 'good'][label]}\t${label}.5`,
  );
  const data = await written('stsb.tsv', ['index\tsentence1\tsentence2\tscore', ...lines]);
  const more = ['--glue', 'stsb', '--dtype', 'bf16'];
  const { output, err } = await train('stsb', data, ...more, '--new-head');
  expect(err).toContain(`(pearson ${bestOf(err, 'pearson').toFixed(4)})`);
  const { text, json } = await evaluate(output, data, '--dtype', 'bf16', '--label-field', 'score');
  expect(text).toMatch(/^pearson +[-\d.]+\nspearman +[-\d.]+\npearsonSpearmanMean +[-\d.]+$/m);
  expect(json).toMatchObject({ problemType: 'regression', examples: 20 });
  // The record of a run of version 0.2.0 is read as well.
  const record = join(output, 'run', 'config.json');
  const now = await readFile(record, 'utf8');
  const typeIn = async (content: string) => {
    await writeFile(record, content);
    return (await trainedHead(model, { adapter: output }))?.problemType;
  };
  const command = { 'problem-type': 'multi_label_classification' };
  expect(await typeIn(JSON.stringify({ command, trainer: {}, identity: {} }))).toBe(
    'multi_label_classification',
  );
  expect(await typeIn(now)).toBe('regression');
  expect(json.labels[0]).toBe(0.5 + (tinyRows(1)[0]?.label as number));
  expect(json.tokens).toBeGreaterThan(20 * 10);
});

it('multi-label classification of pairs of named fields, from JSON Lines', async () => {
  const names = ['bad', 'middling', 'good'];
  const lines = tinyRows(20).map(({ text, label }, i) =>
    JSON.stringify({ a: text, b: 'the film', tags: [names[label], ...(i % 2 ? ['long'] : [])] }),
  );
  const data = await written('tags.jsonl', lines);
  const fields = ['--text-field', 'a', '--text-pair-field', 'b', '--label-field', 'tags'];
  const metric = ['--metric-for-best-model', 'exactMatch'];
  const { output, err } = await train('tags', data, ...fields, ...metric, '--new-head');
  expect(err).toContain(`(exactMatch ${bestOf(err, 'exactMatch').toFixed(4)})`);
  const { text, json } = await evaluate(output, data, ...fields);
  expect(text).toMatch(/^class +precision +recall +f1$/m);
  expect(text).toMatch(/^middling +[\d.]+ +[\d.]+ +[\d.]+$/m);
  expect(text).not.toMatch(/label \\ predicted/);
  expect(json.problemType).toBe('multi_label_classification');
  // The label names in order: bad, good, long, middling.
  expect(json.labels.every((flags: number[]) => flags.length === 4)).toBe(true);
  expect((await runOf(output)).values['problem-type']).toBe('multi_label_classification');
  expect(json.labels.map((flags: number[]) => flags[2])).toEqual(
    Array.from({ length: 20 }, (_, i) => i % 2),
  );
});

it('the problem type is kept in the run, the merged model and the evaluation', async () => {
  const row = ({ text, label }: { text: string; label: number }) => ({ text, label: [label, 0.5] });
  const data = await written(
    'two.jsonl',
    tinyRows(20).map((given) => JSON.stringify(row(given))),
  );
  const { output } = await train('two', data, '--problem-type', 'regression', '--new-head');
  expect((await runOf(output)).values['problem-type']).toBe('regression');
  const { json } = await evaluate(output, data); // two numbers, no flags
  expect(json).toMatchObject({ problemType: 'regression', examples: 20 });

  const merge = async (name: string) => {
    const from = ['--model', model, '--adapter', output, '--output', join(folder, name)];
    const { err } = await balora(['merge', ...from]);
    const config = await readFile(join(folder, name, 'config.json'), 'utf8');
    return { err, problem: JSON.parse(config).problem_type };
  };
  expect(await merge('merged')).toEqual({ err: '', problem: 'regression' });
  const merged = ['evaluate', ...kTask, '--model', join(folder, 'merged'), '--data', data];
  expect(JSON.parse((await balora([...merged, '--json'])).out).loss).toBeCloseTo(json.loss, 5);
  await rm(join(output, 'run'), { recursive: true });
  const guess = await merge('guess');
  expect(guess.problem).toBe('single_label_classification');
  expect(guess.err).toMatch(
    /^warning: .*two does not say what its 2 outputs mean, so single_label_classification becomes the problem_type/,
  );
});

it('classification and regression from Parquet', async () => {
  const data = fixturePath('data/rows.parquet');
  const classes = await train('parquet-classes', data, '--new-head');
  expect(classes.err).toContain(`(accuracy ${bestOf(classes.err, 'accuracy').toFixed(4)})`);
  const { json } = await evaluate(classes.output, data);
  expect(json.labels).toEqual([0, 1, 0, 1, 0, 1, 0]);
  const numbers = ['--label-field', 'score', '--problem-type', 'regression'];
  const { output } = await train('parquet-numbers', data, ...numbers, '--new-head');
  const found = (await evaluate(output, data, '--label-field', 'score')).json;
  expect(found.problemType).toBe('regression');
  expect(found.labels).toEqual([0, 0.5, 1, 1.5, 2, 2.5, 3]);
});
