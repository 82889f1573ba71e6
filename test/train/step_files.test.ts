/**
 * Where the code of a step is: the files of lib/train, lib/tasks and lib/losses of which a function runs during the third step of a run,
 * other than the loop around it. Whoever reads how a step is computed has these to read.
 */
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, expect, it } from 'vitest';
import { runProgram } from '../support/child.ts';

const kProgram = fileURLToPath(new URL('programs/step_files.mjs', import.meta.url));
const kFolder = mkdtempSync(join(tmpdir(), 'balora-coverage-'));
afterAll(() => rmSync(kFolder, { recursive: true, force: true }));

/** Counts by V8 since the report before: functions, the first of whose ranges is the whole function. */
interface Report {
  readonly result: readonly {
    readonly url: string;
    readonly functions: readonly {
      readonly ranges: readonly { readonly startOffset: number; readonly count: number }[];
    }[];
  }[];
}

/** The files of the three layers of which a function ran between the program's two reports. A module's own body begins at 0. */
async function filesOf(...args: readonly string[]): Promise<string[]> {
  const folder = join(kFolder, args.join('-'));
  const { code, stderr } = await runProgram(kProgram, {
    args: [...args],
    env: { NODE_V8_COVERAGE: folder },
  });
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  // coverage-<process>-<time>-<number>.json: one before the step, one after it, one at the end.
  const numberOf = (name: string): number => Number(/(\d+)\.json$/.exec(name)?.[1]);
  const names = readdirSync(folder).sort((a, b) => numberOf(a) - numberOf(b));
  expect(names).toHaveLength(3);
  const report = JSON.parse(readFileSync(join(folder, names[1] as string), 'utf8')) as Report;
  return report.result
    .filter(({ functions }) =>
      functions.some(({ ranges: [whole] }) => whole && whole.startOffset > 0 && whole.count > 0),
    )
    .flatMap(({ url }) => /\/dist\/((?:train|tasks|losses)\/.*)\.js$/.exec(url)?.[1] ?? [])
    .filter((file) => file !== 'train/run')
    .sort();
}

const kStep = [
  ...['losses/head_loss', 'losses/term', 'tasks/language_model'],
  ...['train/runner', 'train/step', 'train/window'],
];

it.each(['lora', 'pissa', 'balora', 'adalora', 'dora'])(
  'a step of %s is in six files',
  async (method) => {
    expect(await filesOf(method, 'live', 'causal-lm')).toEqual(kStep);
  },
);

it('the cache of the teacher is one file more', async () => {
  const files = await filesOf('balora', 'cached', 'causal-lm');
  expect(files).toEqual([...kStep, 'tasks/teacher_cache'].sort());
});

it('a classifier has its task, its loss and its terms', async () => {
  expect(await filesOf('balora', 'live', 'sequence-classification')).toEqual([
    ...['losses/logits_loss', 'losses/nlu_terms', 'losses/plain', 'losses/term'],
    ...['losses/terms/classifier_notes', 'losses/terms/consistency'],
    ...['losses/terms/diversity', 'losses/terms/svd', 'tasks/sequence_classification'],
    ...['train/runner', 'train/step', 'train/window'],
  ]);
});
