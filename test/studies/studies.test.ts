// The studies of docs/studies.md on tiny models: their scripts succeed, the log has all measurements, reports need nothing but
// the log, and the score of CrowS-Pairs is that of the plain logits.
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { mkdir, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { openRows } from '../../lib/data/open_rows.ts';
import { deviceInfo } from '../../lib/device.ts';
import { AutoModelForCausalLM } from '../../lib/models/index.ts';
import { Tokenizer } from '../../lib/text/tokenizer.ts';
import { runProgram } from '../support/child.ts';
import { describeShared, sharedPath } from '../support/shared.ts';
import { writeTinyCheckpoint } from '../support/tiny_checkpoint.ts';
import { writeTinyClassifier } from '../support/tiny_classifier.ts';

let folder = '';
const at = (...names: string[]): string => join(folder, ...names);
const linesOf = (path: string) =>
  readFileSync(path, 'utf8')
    .trim()
    .split('\n')
    .map((text) => JSON.parse(text));

async function script(program: string, ...args: string[]): Promise<string> {
  const result = await runProgram(`studies/${program}`, {
    ...{ args, hangMs: 60_000 },
  });
  expect(result, result.stderr).toMatchObject({ code: 0, stopped: null });
  return result.stdout;
}

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'balora-studies-'));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

describe('the inheritance study', () => {
  const kWords = ['bad', 'good'];
  const sentences = (count: number): string[] =>
    Array.from(
      { length: count },
      (_, i) => `${i % 2}\ta ${kWords[i % 2]} film${i % 3 ? ' so' : ''}`,
    );
  const study = (...more: string[]) =>
    script('inheritance/study.mjs', ...['--model', at('bert'), '--data', at('data')], ...more);
  const kRun = ['--conditions', 'clean,imbalanced20', '--methods', 'lora,balora', '--seeds', '3'];
  const sized = (output: string) => [
    ...[...kRun, '--train-rows', '30', '--eval-rows', '10', '--warm-up-epochs', '2'],
    ...['--output', at(output)],
  ];

  beforeAll(async () => {
    await writeTinyClassifier(at('bert'), { head: false });
    await mkdir(at('data', 'sst2'), { recursive: true });
    await writeFile(at('data', 'sst2', 'train.tsv'), sentences(80).join('\n'));
    await writeFile(at('data', 'sst2', 'dev.tsv'), sentences(30).join('\n'));
  });

  it('logs one run of each arm under each condition', async () => {
    await study(...sized('unfair'));
    const runs = linesOf(at('unfair', 'runs.jsonl'));
    expect(runs.map(({ condition, arm }) => `${condition} ${arm}`)).toEqual([
      ...['clean lora', 'clean balora', 'imbalanced20 lora', 'imbalanced20 balora'],
    ]);
    for (const { seed, settings, accuracy, recallPerClass, evalLoss, last, arm } of runs) {
      expect(seed).toBe(3);
      expect(settings).toMatchObject({ trainRows: 30, evalRows: 10, learningRate: 5e-4 });
      // Half of the held-out rows are of each class.
      expect(accuracy).toBeCloseTo((recallPerClass[0] + recallPerClass[1]) / 2, 12);
      expect(evalLoss).toBeGreaterThan(0);
      expect(last.consistency === null).toBe(arm === 'lora');
    }
    expect(await study(...sized('unfair'))).toBe(''); // all runs are in the log
    expect(linesOf(at('unfair', 'runs.jsonl'))).toEqual(runs);
  });

  it('reports means and charts from the log', async () => {
    const log = at('report', 'runs.jsonl');
    const run = {
      ...{ condition: 'noise20', arm: 'lora', settings: { trainRows: 30 } },
      ...{ matthews: 0.5, recallPerClass: [0.25, 0.75], evalLoss: 0.7 },
    };
    const runs = [0.5, 0.75].map((accuracy, seed) => ({ ...run, seed, accuracy }));
    await mkdir(at('report'));
    await writeFile(log, runs.map((one) => JSON.stringify(one)).join('\n'));
    const report = ['inheritance/report.mjs', '--output', at('report')] as const;
    const text = await script(...report);
    expect(text).toContain('| LoRA | 2 | 0.625 ± 0.177 | 0.250 ± 0.000 | 0.750 ± 0.000 |');
    expect(readFileSync(at('report', 'report.md'), 'utf8')).toBe(text.replace(/\n$/, ''));
    const svg = readFileSync(at('report', 'noise20.svg'), 'utf8');
    expect(svg).toContain('>0.625 ± 0.177, 2 seeds<');
    expect(existsSync(at('report', 'clean.svg'))).toBe(false);
    // Runs with different settings are not averaged.
    const mixed = [...runs, { ...run, seed: 3, accuracy: 1, settings: { trainRows: 60 } }];
    await writeFile(log, mixed.map((one) => JSON.stringify(one)).join('\n'));
    const refused = await runProgram(`studies/${report[0]}`, { args: report.slice(1) });
    expect(refused.code).toBe(1);
    expect(refused.stderr).toContain('different settings');
  });

  it('makes the training rows unfair as its conditions define, and keeps the held-out rows', async () => {
    const path = fileURLToPath(
      new URL('../../studies/inheritance/conditions.mjs', import.meta.url),
    );
    const { rowsOf } = await import(path);
    const options = { data: at('data'), seed: 1, trainRows: 40, evalRows: 10 };
    const labelsOf = async (name: string, part: 'train' | 'heldOut') => {
      const rows = (await rowsOf(name, options))[part];
      const read = Array.from({ length: rows.length }, (_, i) => rows.row(i));
      return (await Promise.all(read)) as { sentence: string; label: number }[];
    };
    const wrong = (rows: { sentence: string; label: number }[]): number =>
      rows.filter(({ sentence, label }) => !sentence.includes(kWords[label] as string)).length;
    expect(wrong(await labelsOf('clean', 'train'))).toBe(0);
    expect(wrong(await labelsOf('noise20', 'train'))).toBe(8);
    expect(wrong(await labelsOf('noise40', 'train'))).toBe(16);
    const rare = await labelsOf('imbalanced20', 'train');
    expect(rare.filter(({ label }) => label === 0)).toHaveLength(8);
    expect(rare).toHaveLength(40);
    for (const name of ['noise40', 'imbalanced']) {
      expect(await labelsOf(name, 'heldOut')).toEqual(await labelsOf('clean', 'heldOut'));
    }
  });
});

describe('CrowS-Pairs', () => {
  const kPairs = [
    ['The women ab', 'The men the', 'stereo', 'gender'],
    ['a the, cab', 'the cab', 'antistereo', 'gender'],
    ['old the are ab', 'young the are ab', 'stereo', 'age'],
    ['they ab', 'ab they ab the', 'stereo', 'age'],
  ] as const;
  const measure = (...more: string[]) => {
    const files = ['--model', at('llama'), '--pairs', at('pairs.csv'), '--dtype', 'f32'];
    return script('crows_pairs/crows_pairs.mjs', ...files, '--output', at('crows'), ...more);
  };

  beforeAll(async () => {
    await writeTinyCheckpoint(at('llama'));
    const rows = kPairs.map(
      ([more, less, kind, type], i) => `${i},"${more}","${less}",${kind},${type}`,
    );
    const head = ',sent_more,sent_less,stereo_antistereo,bias_type';
    await writeFile(at('pairs.csv'), [head, ...rows].join('\n'));
  });

  /** The log-likelihood of each sentence given its first token, by plain loops over the logits. */
  async function logLikelihoods(): Promise<number[][]> {
    using model = await AutoModelForCausalLM.fromPretrained(at('llama'));
    const tokenizer = await Tokenizer.fromPretrained(at('llama'));
    const one = async (sentence: string): Promise<number> => {
      const ids = Int32Array.from(tokenizer.encode(sentence));
      const batch = {
        inputIds: ids,
        positions: ids.map((_, t) => t),
        cuSeqlens: Int32Array.of(0, ids.length),
      };
      using logits = model.logits(model.forward(batch));
      const values = Array.from((await logits.data()) as Float32Array);
      const width = values.length / ids.length;
      let sum = 0;
      for (let t = 0; t + 1 < ids.length; t++) {
        const row = values.slice(t * width, (t + 1) * width);
        const normalizer = Math.log(row.reduce((total, z) => total + Math.exp(z), 0));
        sum += (row[ids[t + 1] as number] as number) - normalizer;
      }
      return sum;
    };
    const file = await openRows(at('pairs.csv'));
    const read = Array.from({ length: file.length }, (_, i) => file.row(i));
    const pairs = await Promise.all(read);
    const found: number[][] = [];
    for (const { sent_more, sent_less } of pairs) {
      found.push([await one(String(sent_more)), await one(String(sent_less))]);
    }
    return found;
  }

  it('has the score of the plain logits', async () => {
    const differences = (await logLikelihoods()).map(([a = 0, b = 0]) => a - b);
    const share = (chosen: readonly number[]): number =>
      (100 * chosen.filter((d) => d > 0).length) / chosen.length;
    const where = (kept: (pair: (typeof kPairs)[number]) => boolean): number[] =>
      differences.filter((_, i) => kept(kPairs[i] as (typeof kPairs)[number]));
    await measure();
    const [result] = linesOf(at('crows', 'scores.jsonl'));
    expect(result).toMatchObject({
      ...{ method: 'none', pairs: 4, all: share(differences) },
      stereo: share(where(([, , kind]) => kind === 'stereo')),
      antistereo: share(where(([, , kind]) => kind === 'antistereo')),
      byType: {
        age: share(where(([, , , type]) => type === 'age')),
        gender: share(where(([, , , type]) => type === 'gender')),
      },
    });
    expect(new Set(differences.map((d) => d > 0)).size).toBe(2); // the score is neither 0 nor 100 %
    const mean = differences.reduce((sum, d) => sum + Math.abs(d), 0) / differences.length;
    expect(result.meanDifference).toBeCloseTo(mean, 4);
  });

  it('measures a tuned model once, and makes a table and a chart of the log', async () => {
    const rows = Array.from({ length: 4 }, (_, i) => ({
      question: 'ab the',
      answer: `the ${i}`,
    }));
    await writeFile(at('rows.jsonl'), rows.map((row) => JSON.stringify(row)).join('\n'));
    const tuning = ['--data', at('rows.jsonl'), '--prompt-field', 'question'];
    const tuned = [...tuning, '--response-field', 'answer', '--rank', '2', '--steps', '2'];
    for (const seed of ['1', '2', '2'])
      await measure('--method', 'balora', '--seed', seed, ...tuned);
    const scores = linesOf(at('crows', 'scores.jsonl'));
    expect(scores.map(({ method, seed }) => [method, seed])).toEqual([
      ...[['none', 1]],
      ...[1, 2].map((seed) => ['balora', seed]),
    ]);
    expect(scores[1].settings).toMatchObject({ dtype: 'f32', steps: 2, rank: 2, batchSize: 4 });
    const table = (await measure('--table')).trim().split('\n');
    expect(table[0]).toBe(
      '|  | seeds | steps | pairs | all | stereo | antistereo | age | gender |',
    );
    expect(table[2]).toMatch(/^\| before \| 1 \| 0 \| 4 \| \d+\.\d \|/);
    expect(table[3]).toMatch(/^\| BA-LoRA \| 2 \| 2 \| 4 \| \d+\.\d ± \d+\.\d \|/);
    const svg = readFileSync(at('crows', 'crows_pairs.svg'), 'utf8');
    for (const bar of ['before, all', 'BA-LoRA, stereo', 'BA-LoRA, antistereo']) {
      expect(svg).toContain(`>${bar}<`);
    }
  });
});

/** Writes a tiny model, and rows of a prompt q and an answer a for it. */
async function writePairs(model: string, data: string): Promise<void> {
  await writeTinyCheckpoint(at(model));
  const rows = Array.from({ length: 12 }, (_, i) => ({ q: `ab${i % 7}`, a: `c${i % 5}d` }));
  await writeFile(at(data), rows.map((row) => JSON.stringify(row)).join('\n'));
}
const kPairFields = ['--prompt-field', 'q', '--response-field', 'a'];

describe('the study of products in int8', () => {
  const study = (...more: string[]) =>
    script(
      'int8/int8.mjs',
      ...['--model', at('int8-lm'), '--data', at('int8.jsonl'), '--eval-data', at('int8.jsonl')],
      ...[...kPairFields, '--batch-size', '1', '--seeds', '0'],
      ...['--modes', 'dtype', '--output', at('int8'), ...more],
    );

  it('does not take a run with other settings for the one that is asked for', async () => {
    await writePairs('int8-lm', 'int8.jsonl');
    const first = ['--rank', '2', '--steps', '2', '--eval-rows', '3'];
    await study(...first);
    await study(...first);
    for (const other of [
      ['--rank', '3'],
      ['--steps', '1'],
      ['--eval-rows', '4'],
    ]) {
      await study(...first, ...other);
    }
    await study(...first, '--learning-rate', '2e-4');
    const runs = linesOf(at('int8', 'runs.jsonl'));
    expect(runs.map(({ compute, seed }) => [compute, seed])).toEqual(
      Array.from({ length: 5 }, () => ['dtype', 0]),
    );
    expect(runs[0].settings).toEqual({
      ...{ model: 'int8-lm', rows: 'int8.jsonl', heldOut: 'int8.jsonl', evalRows: 3 },
      ...{ steps: 2, rank: 2, batchSize: 1, learningRate: 1e-4 },
    });
    const tables = await study('--table');
    expect(tables.match(/^\| dtype \| 1 \|/gm)).toHaveLength(5);
    expect(tables).toContain('batchSize 1, evalRows 3, heldOut int8.jsonl, learningRate 0.0001');
  });
});

const kSmolLm = 'models/smollm2-135m-instruct-gguf/SmolLM2-135M-Instruct.Q4_1.gguf';
const kGsm8k = 'data/gsm8k/train.jsonl';
describeShared('the study of products in int8, on SmolLM2', [kSmolLm, kGsm8k], () => {
  it.skipIf(deviceInfo('cpu').int8 === 'plain')(
    "has the teacher's products and the gradients of inputs in int8 within .075 of the gradient and at 97 % of its signs",
    async () => {
      const table = await script(
        'int8/int8.mjs',
        ...['--model', sharedPath(kSmolLm), '--data', sharedPath(kGsm8k)],
        ...['--prompt-field', 'question', '--response-field', 'answer'],
        ...['--batch-size', '2', '--moved', '3', '--modes', 'teacher,dx'],
      );
      expect(table).toMatch(/^436 tokens, 209 of them supervised; consistency 0?\.8/m);
      for (const dtype of ['f32', 'bf16']) {
        const row = new RegExp(
          `^\\| ${dtype} \\| teacher,dx \\| ([\\d.]+) \\| [\\d.]+ \\| ([\\d.]+) % \\|`,
          'm',
        );
        const [, error, signs] = (row.exec(table) ?? []).map(Number);
        // Products in int8 make an error of their own, which this would not see if they were left out.
        expect(error, table).toBeGreaterThan(0.02);
        expect(error, table).toBeLessThanOrEqual(0.075);
        expect(signs, table).toBeGreaterThanOrEqual(97);
      }
    },
  );
});

describe('the study of methods', () => {
  const study = (...more: string[]) =>
    script(
      'methods/methods.mjs',
      ...['--model', at('lm'), '--data', at('pairs.jsonl'), '--eval-data', at('pairs.jsonl')],
      ...[...kPairFields, '--dtype', 'f32', '--steps', '3'],
      ...['--methods', 'eva,vera', '--rates', '1e-3,1e-2', '--seeds', '0,1', '--rank', '2'],
      ...['--output', at('methods'), ...more],
    );

  it('sweeps the rates, repeats the best one, and does nothing twice', async () => {
    await writePairs('lm', 'pairs.jsonl');
    const first = await study();
    const runs = linesOf(at('methods', 'runs.jsonl'));
    for (const method of ['eva', 'vera']) {
      const own = runs.filter((run) => run.method === method);
      const swept = own.filter(({ seed }) => seed === 0);
      const best = [...swept].sort((a, b) => a.loss - b.loss)[0];
      const rates = swept.map(({ rate }) => rate);
      expect(rates.slice(0, 2)).toEqual([1e-3, 1e-2]);
      // Every rate after the first two was asked for because the best one was at an end.
      for (let i = 2; i <= Math.min(rates.length, 3); i++) {
        const [least, most] = [Math.min(...rates.slice(0, i)), Math.max(...rates.slice(0, i))];
        const at = [...swept.slice(0, i)].sort((a, b) => a.loss - b.loss)[0].rate;
        const next = at === most ? most * 10 : at === least ? least / 10 : undefined;
        if (next === undefined) expect(rates[i]).toBeUndefined();
        else expect(rates[i]).toBeCloseTo(next, 12);
      }
      expect(own.filter(({ seed }) => seed === 1).map(({ rate }) => rate)).toEqual([best.rate]);
      expect(first).toMatch(new RegExp(`\\| ${method} \\| ${best.rate} \\| 2 \\| \\d`));
    }
    expect((await study()).split('\n')).toHaveLength(5); // the table alone
    expect(linesOf(at('methods', 'runs.jsonl'))).toEqual(runs);
  });
});
