/** Precedence among the sources of a classifier's label names: the head, the GLUE task, the data, the user. */
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { balora } from '../../support/run_cli.ts';
import { tinyRows, writeTinyClassifier } from '../../support/tiny_classifier.ts';

const kTask = ['--task', 'sequence-classification'];
/** The labels in the order of roberta-large-mnli, which is the reverse of GLUE's. */
const kHead = ['CONTRADICTION', 'NEUTRAL', 'ENTAILMENT'];
const kGlue = ['entailment', 'neutral', 'contradiction'];
const kRows = tinyRows(20);

let folder: string;
let nli: string; // a model whose head has label names
let plain: string; // a model without label names
let words: string; // data with label names
let ids: string; // data with GLUE's label ids
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'balora-names-'));
  [nli, plain] = [join(folder, 'nli'), join(folder, 'plain')];
  await writeTinyClassifier(plain);
  await writeTinyClassifier(nli);
  await changeConfig(nli, { id2label: { ...kHead } });
  const write = async (name: string, label: (id: number) => unknown) => {
    const lines = kRows.map((row) => `${row.text}\tthe film\t${label(row.label)}`);
    await writeFile(join(folder, name), `premise\thypothesis\tlabel\n${lines.join('\n')}\n`);
    return join(folder, name);
  };
  words = await write('words.tsv', (id) => kGlue[id]);
  ids = await write('ids.tsv', String);
});
afterAll(() => rm(folder, { recursive: true }));

const configOf = async (path: string) =>
  JSON.parse(await readFile(join(path, 'config.json'), 'utf8'));
async function changeConfig(path: string, change: object): Promise<void> {
  const json = { ...(await configOf(path)), ...change };
  await writeFile(join(path, 'config.json'), JSON.stringify(json));
}

const evaluate = (model: string, data: string, ...more: string[]) =>
  balora(['evaluate', ...kTask, '--model', model, '--data', data, ...more]);
const labelsOf = async (...args: Parameters<typeof evaluate>) => {
  const { out, err } = await evaluate(...args, '--json');
  return { labels: JSON.parse(out).labels as number[], err };
};
const train = (model: string, data: string, output: string, ...more: string[]) =>
  balora([
    ...['train', ...kTask, '--model', model, '--data', data, '--output', join(folder, output)],
    ...['--max-steps', '1', '--per-device-train-batch-size', '5', '--method', 'lora', ...more],
  ]);
/** The label ids of the rows in the head's order: GLUE's 0 is its 2. */
const kByHead = kRows.map(({ label }) => 2 - label);
const kByGlue = kRows.map(({ label }) => label);

it("the head's label names decide, whatever the order and case in the data or GLUE", async () => {
  const stand = `the label ids of ${nli} stand for CONTRADICTION, NEUTRAL, ENTAILMENT;`;
  for (const [data, ...more] of [
    [words],
    [words, '--glue', 'mnli'],
    [ids, '--glue', 'mnli'],
  ] as const) {
    const { labels, err } = await labelsOf(nli, data, ...more);
    expect(labels, `${data} ${more}`).toEqual(kByHead);
    expect(err).toContain(stand);
  }
  // Ids without a GLUE task are the head's own.
  expect((await labelsOf(nli, ids)).labels).toEqual(kByGlue);
  const { out } = await evaluate(nli, words);
  expect(out).toMatch(/^label \\ predicted +CONTRADICTION +NEUTRAL +ENTAILMENT$/m);
});

it('label names that contradict the head give a warning or an error', async () => {
  const given = await labelsOf(nli, words, '--label-names', kGlue.join());
  expect(given.labels).toEqual(kByGlue);
  expect(given.err).toContain('--label-names reads them as entailment, neutral, contradiction');
  const same = await labelsOf(nli, words, '--label-names', kHead.join().toLowerCase());
  expect(same).toEqual({ labels: kByHead, err: '' });

  const other = join(folder, 'other');
  await writeTinyClassifier(other);
  await changeConfig(other, { id2label: { 0: 'no', 1: 'maybe', 2: 'yes' } });
  const task = await labelsOf(other, ids, '--glue', 'mnli');
  expect(task.labels).toEqual(kByGlue);
  expect(task.err).toMatch(
    /warning: the label ids of .*other stand for no, maybe, yes, but --glue mnli reads them as entailment, /,
  );
  const unknown = await evaluate(other, words);
  expect(unknown.code).toBe(2);
  expect(unknown.err).toMatch(
    /stand for no, maybe, yes; pass --label-names if the data has other labels/,
  );
  expect(unknown.err).toMatch(
    /words\.tsv:2: .* must be one of the ids .* names no, maybe, yes, got/,
  );

  const guess = await labelsOf(plain, words);
  expect(guess.err).toMatch(
    /warning: .*plain does not say what its label ids stand for, so they are read as contradiction, entailment, neutral, .*--label-names/,
  );
  expect((await labelsOf(plain, ids)).err).toBe('');
  expect((await labelsOf(plain, words, '--label-names', kGlue.join())).err).toBe('');
});

it('a head that is trained further keeps its label names in the run and the merged model', async () => {
  const eval_ = ['--eval-data', ids, '--eval-steps', '1'];
  const { code, err } = await train(nli, words, 'tuned', '--glue', 'mnli', ...eval_);
  expect(code, err).toBe(0);
  expect(err).toContain('stand for CONTRADICTION, NEUTRAL, ENTAILMENT');
  const adapter = join(folder, 'tuned');
  const run = await configOf(join(adapter, 'run'));
  expect(run.values['label-names']).toEqual(kHead);
  for (const [data, ...more] of [[words], [ids, '--glue', 'mnli']] as const) {
    expect((await labelsOf(nli, data, '--adapter', adapter, ...more)).labels).toEqual(kByHead);
  }
  const merged = join(folder, 'merged');
  await balora(['merge', '--model', nli, '--adapter', adapter, '--output', merged]);
  expect((await configOf(merged)).id2label).toEqual({ ...kHead });
  expect((await labelsOf(merged, words)).labels).toEqual(kByHead);
  // Further training of an adapter uses the names of its run.
  expect((await train(nli, words, 'more', '--adapter', adapter)).err).toContain(
    `the label ids of ${adapter} stand for CONTRADICTION, NEUTRAL, ENTAILMENT`,
  );
});

it('full fine-tuning keeps the label names, too', async () => {
  const full = ['--method', 'full', '--learning-rate', '1e-5'];
  expect((await train(nli, words, 'full', ...full)).code).toBe(0);
  expect((await configOf(join(folder, 'full'))).id2label).toEqual({ ...kHead });
});

it('a new head has the label names of the data and none of the old head', async () => {
  const { code, err } = await train(nli, words, 'new', '--new-head');
  expect(code, err).toBe(0);
  expect(err).not.toContain('stand for');
  const merged = join(folder, 'new-merged');
  const adapter = ['--adapter', join(folder, 'new')];
  await balora(['merge', '--model', nli, ...adapter, '--output', merged]);
  const sorted = [...kGlue].sort();
  expect(await configOf(merged)).toMatchObject({
    id2label: { ...sorted },
    label2id: Object.fromEntries(sorted.map((name, id) => [name, id])),
  });
  const wanted = kRows.map(({ label }) => sorted.indexOf(kGlue[label] as string));
  expect((await labelsOf(merged, words)).labels).toEqual(wanted);
  expect((await labelsOf(merged, ids, '--glue', 'mnli')).labels).toEqual(wanted);
  expect((await labelsOf(nli, words, ...adapter)).labels).toEqual(wanted);

  // Without the folder run/ the names are lost.
  await rm(join(folder, 'new', 'run'), { recursive: true });
  const nameless = join(folder, 'nameless');
  await balora(['merge', '--model', nli, ...adapter, '--output', nameless]);
  expect((await configOf(nameless)).id2label).toEqual({ 0: 'LABEL_0', 1: 'LABEL_1', 2: 'LABEL_2' });
});

it('--ignore-keys applies wherever a classifier is loaded', async () => {
  const odd = join(folder, 'odd');
  await writeTinyClassifier(odd);
  await changeConfig(odd, { odd_key: 1, other_key: 2 });
  const keys = ['--ignore-keys', 'odd_key,other_key'];
  const refused = await evaluate(odd, ids);
  expect(refused.code).toBe(1);
  expect(refused.err).toMatch(
    /odd_key, other_key are not understood.* pass --ignore-keys if you know that it does not$/m,
  );
  expect((await evaluate(odd, ids, ...keys)).code).toBe(0);
  expect((await train(odd, ids, 'odd-out', '--consistency-weight', '0.1', ...keys)).code).toBe(0);
  expect((await train(odd, ids, 'odd-full', '--method', 'full', ...keys)).code).toBe(0);
  const adapter = ['--adapter', join(folder, 'odd-out')];
  const merge = ['merge', '--model', odd, ...adapter, '--output', join(folder, 'odd-merged')];
  expect((await balora(merge)).code).toBe(1);
  expect((await balora([...merge, ...keys])).code).toBe(0);
});
