/**
 * Scoring of a causal language model on a task, item by item. All items are encoded and checked before the first is computed, so that
 * an item that cannot be scored is an error at the beginning and not in the middle.
 */
import { ArgumentError } from '../errors.ts';
import { checkKeys } from '../options/call.ts';
import type { ScoredModel } from './loglikelihood.ts';
import { scoreAnswers } from './score_answers.ts';
import { scoreChoices } from './score_choices.ts';
import { scoreTexts } from './score_texts.ts';
import type { ItemRecord, ScoreOptions } from './scoring.ts';
import type { ItemOf } from './task_data.ts';
import type { ItemResult, ScoringTask, TaskMetrics } from './tasks/task.ts';

/**
 * Scores the items of a task, in order.
 * @throws ArgumentError naming the item, before anything is computed: an answer that is longer than the context or has no token, too
 *   few examples; NativeError (`ERR_NOT_FINITE`) for a log-likelihood that is NaN
 * @example
 * const task = scoringTask('arc_easy');
 * const items = await readItems('arc_easy.jsonl', task);
 * for await (const { index, metrics } of scoreItems(model, task, items, { tokenizer })) console.log(index, metrics);
 */
export function scoreItems<T extends ScoringTask>(
  scored: ScoredModel,
  task: T,
  items: readonly ItemOf<T>[],
  options: ScoreOptions<ItemOf<T>>,
): AsyncGenerator<ItemRecord> {
  checkKeys('scoreItems', options, kOptions);
  const given = [items, options] as [never, never];
  switch (task.kind) {
    case 'choice':
      return scoreChoices(scored, task, ...given);
    case 'rolling':
      return scoreTexts(scored, ...given);
    case 'generation':
      return scoreAnswers(scored, task, ...given);
  }
}

const kAnswers = 'tokenizer numFewshot examples maxLength addBosToken skip onCut maxNewTokens';
const kOptions = `${kAnswers} batchSize batchTokens sharePrefixes signal` as const;

/** The numbers of a task by the results of its items. @throws ArgumentError without items */
export function summarize(
  { name, summarize: own = means }: Pick<ScoringTask, 'name' | 'summarize'>,
  items: readonly ItemResult[],
): TaskMetrics {
  if (items.length === 0) {
    throw new ArgumentError(`score: there is no result of an item of ${name}; score at least one`);
  }
  return own(items);
}

/** The mean of each number. */
function means(items: readonly ItemResult[]): TaskMetrics {
  const sums: Record<string, number> = {};
  for (const { metrics } of items) {
    for (const [name, value] of Object.entries(metrics)) sums[name] = (sums[name] ?? 0) + value;
  }
  return Object.fromEntries(Object.entries(sums).map(([name, sum]) => [name, sum / items.length]));
}
