/** Adapter folders that are complete: the tokenizer's files, and a card with the front matter, the settings and the run. */
import { cp, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { parse } from 'yaml';
import { hubIdOf } from '../../lib/io/hub/names.ts';
import { balora } from '../support/run_cli.ts';
import { writeTinyCheckpoint } from '../support/tiny_checkpoint.ts';

let folder: string;
let cache: string;
let snapshot: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'balora-card-'));
  // A snapshot as the Hub's cache has it, whose path says which model it is.
  cache = join(folder, 'hub');
  snapshot = join(cache, 'models--someone--tiny', 'snapshots', '0'.repeat(40));
  await writeTinyCheckpoint(snapshot);
  const data = join(folder, 'd.jsonl');
  const rows = Array.from({ length: 8 }, (_, i) => ({ prompt: `a${i}`, response: 'bcd' }));
  await writeFile(data, rows.map((row) => JSON.stringify(row)).join('\n'));
  const { code, err } = await balora([
    ...['train', '--model', snapshot, '--data', data, '--eval-data', data, '--eval-steps', '2'],
    ...['--output', join(folder, 'run'), '--method', 'lora', '--r', '2', '--lora-alpha', '4'],
    ...['--max-steps', '6', '--save-steps', '4', '--prompt-template', 'none'],
    ...['--lr-scheduler-type', 'constant'],
  ]);
  expect(code, err).toBe(0);
});
afterAll(() => rm(folder, { recursive: true }));

const card = async (name: string): Promise<string> =>
  readFile(join(folder, name, 'README.md'), 'utf8');
/** The number of points of each curve in the picture. */
const pointsIn = async (name: string): Promise<number[]> => {
  const svg = await readFile(join(folder, name, 'loss.svg'), 'utf8');
  return Array.from(
    svg.matchAll(/points="([^"]*)"/g),
    ([, points = '']) => points.split(' ').length,
  );
};
const frontMatter = (text: string): unknown => parse(text.split('---\n')[1] as string);

it('is written at the end of a run, with the tokenizer', async () => {
  expect((await readdir(join(folder, 'run'))).sort()).toEqual([
    ...['README.md', 'adapter_config.json', 'adapter_model.safetensors', 'loss.svg', 'run'],
    ...['tokenizer.json', 'tokenizer_config.json'],
  ]);
  const config = JSON.parse(await readFile(join(folder, 'run', 'adapter_config.json'), 'utf8'));
  expect(config.base_model_name_or_path).toBe('someone/tiny');
  const text = await card('run');
  expect(frontMatter(text)).toEqual({
    base_model: 'someone/tiny',
    library_name: 'peft',
    pipeline_tag: 'text-generation',
    tags: ['base_model:adapter:someone/tiny', 'lora', 'transformers', 'balora'],
  });
  for (const line of ['| r | 2 |', '| lora_alpha | 4 |', '| adapted modules | 14 |']) {
    expect(text).toContain(line);
  }
  expect(text).toMatch(/^6 steps, .* tokens/m);
  expect(text.match(/^\| \d \| .* \| .* \| .* \|$/gm)?.length).toBeGreaterThanOrEqual(6);
  expect(text).toContain('\n![The loss over the steps](loss.svg)\n');
  expect(await pointsIn('run')).toEqual([6, 3]);
  expect(text).toMatch(/## Evaluation\n\n\| step \| .*loss/);
  expect(text).not.toContain(folder);
});

it('of a checkpoint has the steps up to it', async () => {
  const { code, out } = await balora([
    ...['export', '--model', snapshot, '--output', join(folder, 'fourth')],
    ...['--adapter', join(folder, 'run/run/checkpoints/step-4')],
  ]);
  expect(out).toBe(`written to ${join(folder, 'fourth')}\n`);
  expect(code).toBe(0);
  expect((await readdir(join(folder, 'fourth'))).sort()).toEqual([
    ...['.balora-export.json', 'README.md', 'adapter_config.json', 'adapter_model.safetensors'],
    ...['loss.svg', 'tokenizer.json', 'tokenizer_config.json'],
  ]);
  const text = await card('fourth');
  expect(await pointsIn('fourth')).toEqual([4, 2]);
  expect(text).not.toContain('| 6 |');
});

it('leaves out numbers of the record that are none', async () => {
  const changed = join(folder, 'changed');
  await cp(join(folder, 'run'), changed, { recursive: true });
  const metrics = join(changed, 'run/metrics.jsonl');
  const line = '{"step":6,"loss":1,"tokens":{"toString":1},"epoch":[],"peakRssBytes":"x"}\n';
  await writeFile(metrics, (await readFile(metrics, 'utf8')) + line);
  await writeFile(join(changed, 'run/export.json'), '{"step":{"toString":1}}');
  const { code, err } = await balora([
    ...['export', '--model', snapshot, '--output', join(folder, 'of-changed')],
    ...['--adapter', changed],
  ]);
  expect(code, err).toBe(0);
  expect(await card('of-changed')).toMatch(/^6 steps, \d+ tokens\.$/m);
});

it('that somebody has changed is kept', async () => {
  const again = join(folder, 'again');
  await cp(join(folder, 'run'), again, { recursive: true });
  const train = (...more: string[]) =>
    balora([
      ...['train', '--model', snapshot, '--data', join(folder, 'd.jsonl'), '--output', again],
      ...['--eval-data', join(folder, 'd.jsonl'), '--eval-steps', '2', '--method', 'lora'],
      ...['--r', '2', '--lora-alpha', '4', '--save-steps', '4', '--prompt-template', 'none'],
      ...['--max-steps', '8', '--resume', '--lr-scheduler-type', 'constant', ...more],
    ]);
  const { code, err } = await train();
  expect(code, err).toBe(0);
  expect(await pointsIn('again')).toEqual([8, 4]);
  await writeFile(join(again, 'README.md'), 'mine');
  expect((await train()).code).toBe(0);
  expect(await card('again')).toBe('mine');
});

it('has no path as base_model, which the Hub refuses', async () => {
  const local = join(folder, 'local');
  await cp(snapshot, local, { recursive: true });
  const { code } = await balora([
    ...['export', '--model', local, '--output', join(folder, 'of-local')],
    ...['--adapter', join(folder, 'run')],
  ]);
  expect(code).toBe(0);
  // The adapter still names the model that it was trained on.
  expect(frontMatter(await card('of-local'))).toMatchObject({ base_model: 'someone/tiny' });
  expect(hubIdOf(local)).toBeNull();
  expect(hubIdOf('./a/b')).toBeNull();
  expect(hubIdOf('owner/name')).toBe('owner/name');
  expect(hubIdOf(join(snapshot, 'model.gguf'))).toBe('someone/tiny');
});
