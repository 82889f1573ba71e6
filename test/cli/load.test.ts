/** Data files of every kind for a language model: train, evaluate and inspect read the same rows out of them. */
import { existsSync } from 'node:fs';
import { mkdtemp, readdir, readlink, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { fixturePath } from '../support/fixtures.ts';
import { balora } from '../support/run_cli.ts';
import { writeTinyCheckpoint } from '../support/tiny_checkpoint.ts';

let folder: string;
let model: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'balora-load-'));
  model = join(folder, 'model');
  await writeTinyCheckpoint(model);
});
afterAll(() => rm(folder, { recursive: true }));

// The rows of the Parquet file.
const kRows = Array.from({ length: 7 }, (_, i) => ({ label: i % 2, sentence: `row ${i} é` }));
const kFields = [
  ...['--prompt-field', 'label', '--response-field', 'sentence', '--prompt-template', 'none'],
];

const kColumns = ['--columns', 'label,sentence'];

async function pathOf(kind: string): Promise<string> {
  if (kind === 'parquet') return fixturePath('data/rows.parquet');
  const separator = kind.endsWith('csv') ? ',' : '\t';
  const table = [['label', 'sentence'], ...kRows.map(({ label, sentence }) => [label, sentence])];
  if (kind.startsWith('bare')) table.shift(); // without a header
  const lines =
    kind === 'jsonl'
      ? kRows.map((row) => JSON.stringify(row))
      : table.map((fields) => fields.join(separator));
  const path = join(folder, `data.${kind}`);
  await writeFile(path, lines.join('\n'));
  return path;
}

it.each(['csv', 'tsv', 'bare.tsv', 'parquet', 'jsonl'])(
  'a language model reads .%s',
  async (kind) => {
    const data = await pathOf(kind);
    const fields = [...kFields, ...(kind === 'bare.tsv' ? kColumns : [])];
    const { code, err } = await balora([
      ...['train', '--model', model, '--data', data, '--eval-data', data, ...fields],
      ...['--method', 'lora', '--r', '2', '--max-steps', '2', '--eval-steps', '1'],
      ...['--per-device-eval-batch-size', '3'],
    ]);
    expect(err).toMatch(/^data: 7 examples \(label -> sentence\), /m);
    expect(err).toMatch(/^evaluation at step 2: loss /m);
    expect(code).toBe(0);
    const evaluated = await balora(['evaluate', '--model', model, '--data', data, ...fields]);
    expect(evaluated.out).toMatch(/^examples +7, /m);
    const shown = await balora(['inspect', model, '--data', data, '--row', '5', ...fields]);
    expect(shown.out).toMatch(/data\.[\w.]+:\d|rows\.parquet row 5/);
    expect(shown.out).toMatch(/ \* {2}.*5/);
  },
);

/** The files that this process has open. */
async function openFiles(): Promise<(string | null)[]> {
  const names = await readdir('/proc/self/fd');
  return Promise.all(names.map((name) => readlink(`/proc/self/fd/${name}`).catch(() => null)));
}

it.skipIf(!existsSync('/proc/self/fd'))('no data file stays open after an error', async () => {
  const data = await pathOf('jsonl');
  const { err } = await balora([
    ...['train', '--model', model, '--data', data, '--eval-data', join(folder, 'none.jsonl')],
    ...[...kFields, '--method', 'lora', '--r', '2'],
  ]);
  expect(err).toMatch(/cannot open .*none\.jsonl: no such file; check the path$/m);
  expect(await openFiles()).not.toContain(data);
});

it('evaluate refuses what its task does not read', async () => {
  const data = await pathOf('jsonl');
  const evaluate = (...more: string[]) =>
    balora(['evaluate', '--model', model, '--data', data, ...more]);
  for (const [option, value] of [
    ['--glue', 'cola'],
    ['--num-labels', '2'],
    ['--label-field', 'label'],
  ] as const) {
    const { code, err } = await evaluate(option, value);
    expect(err).toBe(`error: ${option} needs --task sequence-classification\n`);
    expect(code).toBe(2);
  }
  expect((await evaluate('--task', 'sequence-classification', ...kFields)).err).toMatch(
    /error: --prompt-template has no meaning for --task sequence-classification/,
  );
  expect((await evaluate(...kColumns)).err).toMatch(
    /columns are for \.tsv and \.csv files, and .*data\.jsonl names its own fields; leave them out/,
  );
});
