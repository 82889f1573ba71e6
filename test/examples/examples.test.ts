// The scripts of examples/ as a reader runs them, one after the other on the small model: each succeeds, and its output and files
// are consistent.
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { runProgram } from '../support/child.ts';

const kCopied = [
  'classifier.mjs',
  'custom_loss.mjs',
  'evaluate.mjs',
  'generate.mjs',
  'merge.mjs',
  'train.mjs',
];

let folder = '';
const at = (name: string): string => join(folder, name);

async function example(name: string, ...args: string[]): Promise<string> {
  const options = { args, hangMs: 30_000 };
  const result = await runProgram(`examples/${name}.mjs`, options);
  expect(result, result.stderr).toMatchObject({ code: 0, stopped: null });
  return result.stdout;
}

/** Every number after a label in a text. */
const numbersAfter = (label: string, text: string): number[] =>
  [...text.matchAll(new RegExp(`${label} ([-\\d.e]+)`, 'g'))].map(([, number]) => Number(number));

let trained = '';
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'balora-examples-'));
  trained = await example('train', at('adapter'));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

it('are all run here', () => {
  expect(readdirSync('examples').filter((name) => name.endsWith('.mjs'))).toEqual(kCopied);
});

it('train: learns its rows, evaluates during the run and writes an adapter', () => {
  const losses = numbersAfter('step \\d+: loss', trained);
  expect(losses).toHaveLength(20);
  expect(losses.at(-1)).toBeLessThan(0.8 * (losses[0] as number));
  expect(numbersAfter('held-out loss', trained)).toHaveLength(2);
  expect(readdirSync(at('adapter'))).toEqual(
    expect.arrayContaining(['adapter_config.json', 'adapter_model.safetensors']),
  );
});

it('evaluate and merge: the merged model gives the numbers of the adapter', async () => {
  const tuned = await example('evaluate', at('adapter'));
  const [loss = 0, ...examples] = numbersAfter('loss', tuned);
  expect(Math.exp(loss)).toBeCloseTo(numbersAfter('perplexity', tuned)[0] as number, 9);
  expect(numbersAfter('KL to the model before tuning', tuned)[0]).toBeGreaterThan(0.01);
  expect(examples).toHaveLength(2);
  const merged = await example('merge', at('adapter'), at('merged'));
  expect(merged).toContain(`written to ${at('merged')}`);
  const { AutoModelForCausalLM, evaluate, Batches, Tokenizer, arrayRows } = await import(
    '../../lib/index.ts'
  );
  const model = await AutoModelForCausalLM.fromPretrained(at('merged'));
  const tokenizer = await Tokenizer.fromPretrained(at('merged'));
  const rows = [{ prompt: 'Call me', response: 'Ishmael.' }];
  const data = await Batches.create(arrayRows(rows), tokenizer);
  const plain = { model, hasTeacher: false, withTeacher: () => expect.unreachable() };
  expect((await evaluate(plain, data.batches(0))).loss).toBeCloseTo(examples[0] as number, 5);
});

it('generate: the adapter answers as it was trained, the model without it does not', async () => {
  const text = await example('generate', at('adapter'), 'Call me');
  expect(text).toMatch(/^before: (?!Ishmael).+\nafter: Ishmael\.\n$/);
});

it('classifier: learns its rows and writes adapter and head', async () => {
  const text = await example('classifier', at('classifier'));
  expect(numbersAfter('accuracy', text)).toEqual([1]);
  expect(readdirSync(at('classifier'))).toContain('adapter_model.safetensors');
});

it('custom_loss: trains with the loss that it defines', async () => {
  const text = await example('custom_loss', at('smoothed'));
  const losses = numbersAfter('step \\d+: loss', text);
  const [task, uniform] = [numbersAfter('task', text), numbersAfter('uniform', text)];
  expect(losses).toHaveLength(20);
  losses.forEach((loss, i) => {
    expect(loss).toBeCloseTo(0.9 * (task[i] as number) + 0.1 * (uniform[i] as number), 4);
  });
  expect(losses.at(-1)).toBeLessThan(losses[0] as number);
});
