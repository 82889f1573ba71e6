/** Types and helpers that the scoring of all kinds of tasks shares. */
import { setImmediate as nextTurn } from 'node:timers/promises';
import { z } from 'zod';
import { ArgumentError } from '../errors.ts';
import type { CausalLM } from '../models/index.ts';
import type { Tokenizer } from '../text/tokenizer.ts';
import type { LoglikelihoodOptions } from './loglikelihood.ts';
import type { Outcome } from './run_code.ts';
import type { FewShot, ItemResult } from './tasks/task.ts';

/** Options of scoring a task. D is the type of its items. */
export interface ScoreOptions<D = unknown> extends LoglikelihoodOptions {
  readonly tokenizer: Tokenizer;
  /** Number of examples in front of each question. Default: that of the task. */
  readonly numFewshot?: number | undefined;
  /** Items to choose the examples from; needed where there are any. */
  readonly examples?: readonly D[] | undefined;
  /** Largest number of tokens that the model reads at a time. Default: its context. */
  readonly maxLength?: number | undefined;
  /** Whether BOS stands before each prompt. Default: for Gemma models alone, as in lm-evaluation-harness. */
  readonly addBosToken?: boolean | undefined;
  /** Indices of items that are not to be computed, because their results exist. Default none. */
  readonly skip?: ReadonlySet<number> | undefined;
  /** Called once, before the first item is computed, with the number of items whose prompts are longer than the context. */
  readonly onCut?: ((items: number) => void) | undefined;
  /** Largest number of new tokens of a generated answer. Default: that of the task. */
  readonly maxNewTokens?: number | undefined;
  /** Number of answers that are generated at the same time. Default 16. */
  readonly batchSize?: number | undefined;
}

/** An answer of a multiple choice and its log-likelihood. */
export interface ScoredChoice {
  readonly text: string;
  readonly loglikelihood: number;
  readonly isGreedy: boolean;
}

/** The result of one item. */
export interface ItemRecord extends ItemResult {
  /** Index of the item in the data, from 0. */
  readonly index: number;
  /** Whether the beginning of its prompt was left out, because it is longer than the context. */
  readonly isCut: boolean;
  /** Answers of a multiple choice. */
  readonly choices?: readonly ScoredChoice[];
  /** Index of the answer with the largest log-likelihood. */
  readonly prediction?: number;
  /** Indices of the right answers. */
  readonly gold?: readonly number[];
  /** The generated text. */
  readonly output?: string;
  /** The answer that each rule found in the generated text; null: none. */
  readonly extracted?: Readonly<Record<string, string | null>>;
  /** The reference's answer, beside a generated one. */
  readonly answer?: string;
  /** How the program ended that the generated text is a part of; left out: it was not run. */
  readonly outcome?: Outcome;
}

const kRecord = z.looseObject({
  index: z.int().nonnegative(),
  isCut: z.boolean(),
  metrics: z.record(z.string(), z.number()),
  groups: z.record(z.string(), z.string()).optional(),
  choices: z
    .array(z.looseObject({ text: z.string(), loglikelihood: z.number(), isGreedy: z.boolean() }))
    .optional(),
  prediction: z.int().optional(),
  gold: z.array(z.int()).optional(),
  output: z.string().optional(),
  extracted: z.record(z.string(), z.string().nullable()).optional(),
  answer: z.string().optional(),
  outcome: z.string().optional(),
});

/** Whether a value that was read from a file has the form of a record. */
export function isItemRecord(value: unknown): value is ItemRecord {
  return kRecord.safeParse(value).success;
}

/** An item whose prompt has been encoded as E. */
export interface Encoded<E> {
  readonly index: number;
  readonly value: E;
  readonly isCut: boolean;
}

/** Milliseconds of work after which other callbacks of the process get their turn. */
const kTurnMs = 8;

/**
 * Encodes all items that are not skipped, and reports those that were cut.
 * @param encode encodes an item; it is called for skipped ones, too, whose prompts may determine those of others
 * @throws ArgumentError of `encode`, with the item's index in front
 */
export async function encodeItems<D, E>(
  items: readonly D[],
  encode: (item: D, index: number) => { readonly value: E; readonly isCut: boolean },
  { tokenizer, skip, signal, onCut }: ScoreOptions<never>,
): Promise<Encoded<E>[]> {
  const encoded: Encoded<E>[] = [];
  let [turn, cut] = [performance.now(), 0];
  for (const [index, item] of items.entries()) {
    const found = await tokenizer.withLongTexts(() => named(index, () => encode(item, index)), {
      signal,
    });
    if (found.isCut) cut++;
    if (skip?.has(index) !== true) encoded.push({ index, ...found });
    if (performance.now() - turn < kTurnMs) continue;
    await nextTurn();
    signal?.throwIfAborted();
    turn = performance.now();
  }
  if (cut > 0) onCut?.(cut);
  return encoded;
}

/** Adds the index of an item to the message of its error. */
function named<T>(index: number, work: () => T): T {
  try {
    return work();
  } catch (error) {
    if (!(error instanceof ArgumentError)) throw error;
    throw new ArgumentError(`item ${index}: ${error.message}`);
  }
}

/**
 * The text in front of each item's question: its examples, a blank line after each.
 * @returns a function that must be called for the items in order, since some tasks draw examples anew for each
 * @throws ArgumentError where there are too few examples
 */
export function fewshotTexts<D>(
  { name, numFewshot, drawFewshot, example }: FewShot<D> & { readonly name: string },
  {
    numFewshot: count = numFewshot,
    examples = [],
  }: Pick<ScoreOptions<D>, 'numFewshot' | 'examples'>,
): () => string {
  if (examples.length < count) {
    throw new ArgumentError(
      `score: ${name} is asked with ${count} examples, and there are ${examples.length} to choose from; ` +
        'give their file, or take numFewshot 0 (--num-fewshot 0)',
    );
  }
  const draw =
    drawFewshot?.() ?? ((_: number, n: number) => Array.from({ length: n }, (_, i) => i));
  return () =>
    count === 0
      ? ''
      : draw(examples.length, count)
          .map((at) => `${example(examples[at] as D)}\n\n`)
          .join('');
}

/** The largest number of tokens that the model reads at a time. @throws ArgumentError for one that its position table lacks */
export function maxLengthOf(
  model: CausalLM,
  { maxLength = model.contextLength }: Pick<ScoreOptions, 'maxLength'>,
): number {
  if (Number.isFinite(maxLength)) model.checkLength(maxLength);
  return maxLength;
}

/** Whether BOS stands before each prompt. */
export function addsBosToken(
  { modelType }: CausalLM,
  { addBosToken = modelType.startsWith('gemma') }: Pick<ScoreOptions, 'addBosToken'>,
): boolean {
  return addBosToken;
}
