// Log-likelihoods and metrics of SmolLM2-135M by lm-evaluation-harness, in f32: ../shared/golden/evaluation. With BALORA_SLOW=1 all
// answers of GSM8K are generated, which takes minutes; otherwise the two shortest.
import { readFileSync } from 'node:fs';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { openRows } from '../../lib/data/open_rows.ts';
import { loglikelihoods } from '../../lib/eval/loglikelihood.ts';
import { encodeRequest, prefixToken, rollingWindows } from '../../lib/eval/requests.ts';
import { scoreItems, summarize } from '../../lib/eval/score.ts';
import type { ItemRecord, ScoreOptions } from '../../lib/eval/scoring.ts';
import { readItems } from '../../lib/eval/task_data.ts';
import { scoringTask } from '../../lib/eval/tasks/registry.ts';
import type {
  ChoiceTask,
  GenerationTask,
  QuestionItem,
  RollingTask,
  TaskMetrics,
} from '../../lib/eval/tasks/task.ts';
import { AutoModelForCausalLM, type CausalLM } from '../../lib/models/index.ts';
import { Tokenizer } from '../../lib/text/tokenizer.ts';
import { describeShared, sharedPath } from '../support/shared.ts';

const kModel = 'models/smollm2-135m-instruct-gguf';
const kGolden = 'golden/evaluation';

interface GoldenItem {
  readonly context: string;
  readonly context_ids: readonly number[];
  readonly gold: number;
  readonly row?: number;
  readonly metrics: Readonly<Record<string, number>>;
  readonly choices: readonly {
    readonly continuation: string;
    readonly ids: readonly number[];
    readonly loglikelihood: number;
    readonly is_greedy: boolean;
  }[];
}

interface GoldenRun {
  readonly results: Readonly<Record<string, number>>;
  readonly items: readonly GoldenItem[];
}

interface GoldenWindows {
  readonly results: Readonly<Record<string, number>>;
  readonly documents: readonly {
    readonly text: string;
    readonly words: number;
    readonly bytes: number;
    readonly loglikelihood: number;
    readonly windows: readonly {
      readonly context: readonly number[];
      readonly predict: readonly number[];
      readonly loglikelihood: number;
    }[];
  }[];
}

interface GoldenAnswers {
  readonly results: Readonly<Record<string, number>>;
  readonly items: readonly {
    readonly row: number | null;
    readonly prompt: string;
    readonly shots: readonly number[];
    readonly gold: string;
    readonly generated: string;
    readonly filtered: Readonly<Record<string, string>>;
    readonly exact_match: Readonly<Record<string, number>>;
  }[];
}

/** Tolerances of the README: for one-token answers, and for longer ones. */
const [kOneToken, kTokens, kWindow] = [5e-4, 2e-3, 5e-3];

const kSlow = process.env.BALORA_SLOW === '1';
/** Indices of the answers with the fewest tokens. */
const kQuickAnswers = [6, 3];

const readGolden = <T>(name: string): T =>
  JSON.parse(readFileSync(sharedPath(`${kGolden}/${name}.json`), 'utf8')) as T;

/** Tolerance of the numbers of a task. Those that no choice of an answer decides follow the log-likelihoods. */
function toleranceOf(task: string, name: string, value: number): number {
  if (task === 'truthfulqa_mc2' || name === 'likelihood_diff') return 1e-3;
  const isPerplexity = ['word_perplexity', 'byte_perplexity', 'bits_per_byte'].includes(name);
  return isPerplexity ? 1e-4 * value : 1e-9;
}

function expectResults(
  task: string,
  found: TaskMetrics,
  results: Readonly<Record<string, number>>,
): void {
  const expected = Object.entries(results).filter(([name]) => !name.endsWith('_stderr'));
  expect(Object.keys(found).sort()).toEqual(expected.map(([name]) => name).sort());
  for (const [name, value] of expected) {
    const distance = Math.abs((found[name] as number) - value);
    expect(distance, name).toBeLessThanOrEqual(toleranceOf(task, name, value));
  }
}

function expectItem(found: ItemRecord, golden: GoldenItem): void {
  golden.choices.forEach(({ ids, loglikelihood, is_greedy }, c) => {
    const choice = found.choices?.[c];
    const distance = Math.abs((choice?.loglikelihood as number) - loglikelihood);
    expect(distance, golden.context).toBeLessThanOrEqual(ids.length === 1 ? kOneToken : kTokens);
    expect(choice?.isGreedy).toBe(is_greedy);
  });
  for (const [name, value] of Object.entries(golden.metrics)) {
    const tolerance = Number.isInteger(value) ? 0 : 2 * kTokens;
    expect(Math.abs((found.metrics[name] as number) - value), name).toBeLessThanOrEqual(tolerance);
  }
}

/** Compares every item of a task, and the means over all of them. */
function expectRun(
  task: ChoiceTask,
  records: readonly ItemRecord[],
  { items, results }: GoldenRun,
): void {
  expect(records).toHaveLength(items.length);
  records.forEach((record, i) => {
    expectItem(record, items[i] as GoldenItem);
  });
  expectResults(task.name, summarize(task, records), results);
}

describeShared('lm-evaluation-harness on SmolLM2-135M', [kModel, kGolden, 'data'], () => {
  let model: CausalLM;
  let tokenizer: Tokenizer;
  beforeAll(async () => {
    model = await AutoModelForCausalLM.fromPretrained(sharedPath(kModel));
    tokenizer = await Tokenizer.fromPretrained(sharedPath(kModel));
  });
  afterAll(() => model?.dispose());

  async function run(
    task: ChoiceTask,
    file: string,
    { rows, ...options }: Partial<ScoreOptions<never>> & { rows?: readonly number[] } = {},
  ): Promise<ItemRecord[]> {
    const all = await readItems(sharedPath(file), task);
    const items = rows?.map((row) => all[row] as (typeof all)[number]) ?? all;
    const records: ItemRecord[] = [];
    for await (const record of scoreItems(model, task, items, { tokenizer, ...options })) {
      records.push(record);
    }
    return records;
  }

  const choice = (name: string) => scoringTask(name) as ChoiceTask;

  it.each([
    ['arc_easy', 'arc_easy', 'arc_easy.train'],
    ['hellaswag', 'hellaswag', 'hellaswag.train'],
    ['mmlu', 'mmlu', 'mmlu.dev'],
    ['truthfulqa_mc1', 'truthfulqa', null],
    ['truthfulqa_mc2', 'truthfulqa', null],
  ])('scores %s', async (name, data, shots) => {
    const golden = readGolden<Record<string, GoldenRun>>(`choice_${name}`);
    const task = choice(name);
    for (const numFewshot of shots === null ? [0] : [0, 2]) {
      const { items, results } = golden[`${numFewshot}_shot`] as GoldenRun;
      const examples =
        shots === null ? [] : await readItems(sharedPath(`${kGolden}/data/${shots}.jsonl`), task);
      const file = `${kGolden}/data/${data}.jsonl`;
      const records = await run(task, file, { numFewshot, examples: examples as never[] });
      expectRun(task, records, { items, results });
    }
  });

  it('scores CrowS-Pairs', async () => {
    const { items, results } = readGolden<GoldenRun>('crows_pairs');
    const rows = items.map(({ row }) => row as number);
    const task = choice('crows_pairs');
    const records = await run(task, 'data/crows_pairs/crows_pairs.csv', { rows });
    expectRun(task, records, { items, results });
  });

  it('has the same numbers where each answer is computed alone', async () => {
    const task = choice('arc_easy');
    const file = `${kGolden}/data/arc_easy.jsonl`;
    const rows = [0, 1, 2, 3];
    const shared = await run(task, file, { rows });
    const alone = await run(task, file, { rows, sharePrefixes: false, batchTokens: 1 });
    alone.forEach(({ choices }, i) => {
      choices?.forEach(({ loglikelihood }, c) => {
        const other = shared[i]?.choices?.[c]?.loglikelihood as number;
        expect(Math.abs(loglikelihood - other)).toBeLessThan(1e-4);
      });
    });
  });

  it('divides prompts into tokens as the harness does', async () => {
    for (const name of ['arc_easy', 'hellaswag', 'mmlu', 'truthfulqa_mc1']) {
      const runs = readGolden<Record<string, GoldenRun>>(`choice_${name}`);
      for (const { items } of Object.values(runs).filter((one) => Array.isArray(one.items))) {
        for (const { context, context_ids, choices } of items) {
          for (const { continuation, ids } of choices) {
            const request = encodeRequest(context, continuation, { tokenizer });
            expect(request).toEqual({ context: context_ids, continuation: ids });
          }
        }
      }
    }
    const { items } = readGolden<GoldenRun>('crows_pairs');
    for (const { context_ids, choices } of items) {
      for (const { continuation, ids } of choices) {
        const request = encodeRequest('', continuation, { tokenizer });
        expect(request).toEqual({ context: context_ids, continuation: ids });
      }
    }
  });

  it('scores GLUE as a language model', async () => {
    const golden = readGolden<Record<string, GoldenRun>>('glue');
    for (const name of ['sst2', 'cola']) {
      const { items } = golden[name] as GoldenRun;
      const groups = items.map(({ context, choices }) =>
        choices.map(({ continuation }) => encodeRequest(context, continuation, { tokenizer })),
      );
      let i = 0;
      for await (const found of loglikelihoods(model, groups)) {
        const item = items[i++] as GoldenItem;
        expectItem(
          {
            index: i,
            isCut: false,
            metrics: item.metrics,
            choices: found.map((one) => ({ text: '', ...one })),
          },
          item,
        );
      }
      expect(i).toBe(items.length);
    }
  });

  it('scores texts in windows', async () => {
    const golden = readGolden<Record<string, GoldenWindows>>('rolling');
    const task = scoringTask('documents') as RollingTask;
    const items = await readItems(sharedPath(`${kGolden}/data/documents.jsonl`), task);
    for (const maxLength of [64, 128, 2048]) {
      const { documents, results } = golden[`max_length_${maxLength}`] as GoldenWindows;
      const records: ItemRecord[] = [];
      for await (const record of scoreItems(model, task, items, { tokenizer, maxLength })) {
        records.push(record);
      }
      documents.forEach(({ text, words, bytes, loglikelihood, windows }, i) => {
        const ids = tokenizer.encode(text, { addSpecialTokens: false });
        expect(rollingWindows(ids, { prefix: prefixToken(tokenizer), maxLength })).toEqual(
          windows.map(({ context, predict }) => ({ context, continuation: predict })),
        );
        const { metrics } = records[i] as ItemRecord;
        expect(metrics).toMatchObject({ words, bytes });
        const distance = Math.abs((metrics.loglikelihood as number) - loglikelihood);
        expect(distance).toBeLessThan(kWindow * windows.length);
      });
      expectResults(task.name, summarize(task, records), results);
    }
  });

  it('generates the answers of GSM8K, and draws the same examples', async () => {
    const { items, results } = readGolden<GoldenAnswers>('gsm8k');
    const task = scoringTask('gsm8k') as GenerationTask;
    const all = await readItems(sharedPath('data/gsm8k/test.jsonl'), task);
    const examples = await readItems(sharedPath('data/gsm8k/train.jsonl'), task);
    const asked = items.map(({ row, prompt, gold }) => {
      const question = prompt.slice(prompt.lastIndexOf('Question: ') + 10, -'\nAnswer:'.length);
      const item = row === null ? { question, answer: gold } : all[row];
      expect(item).toEqual({ question, answer: gold });
      return item as QuestionItem;
    });
    const draw = task.drawFewshot?.();
    for (const { shots, prompt } of items) {
      const drawn = draw?.(examples.length, 5) as readonly number[];
      expect(drawn).toEqual(shots);
      const texts = drawn.map((at) => `${task.example(examples[at] as QuestionItem)}\n\n`);
      expect(prompt.startsWith(texts.join(''))).toBe(true);
    }
    const records: ItemRecord[] = [];
    const kept = items.map((_, i) => i).filter((i) => kSlow || kQuickAnswers.includes(i));
    const skip = new Set(items.map((_, i) => i).filter((i) => !kept.includes(i)));
    const options = { tokenizer, examples, maxNewTokens: 128, skip };
    for await (const record of scoreItems(model, task, asked, options)) records.push(record);
    expect(records.map(({ index }) => index)).toEqual(kept);
    for (const { index, output, extracted, metrics } of records) {
      const { generated, filtered, exact_match } = items[index] as (typeof items)[number];
      expect(output).toBe(generated);
      expect(extracted).toEqual(filtered);
      for (const [rule, value] of Object.entries(exact_match)) {
        expect(metrics[`exact_match,${rule}`]).toBe(value);
      }
    }
    if (!kSlow) return;
    const found = summarize(task, records);
    for (const [name, value] of Object.entries(found)) expect(value, name).toBe(results[name]);
  });

  it('reads the whole file of CrowS-Pairs', async () => {
    const path = sharedPath('data/crows_pairs/crows_pairs.csv');
    const rows = await openRows(path);
    const items = await readItems(path, choice('crows_pairs'));
    expect(items).toHaveLength(rows.length);
    await rows.close();
  });
});
