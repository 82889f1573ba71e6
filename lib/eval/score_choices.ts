/** Scoring of multiple choice: log-likelihoods of the answers that follow a question. */
import { loglikelihoods, type ScoredModel, scoredModel } from './loglikelihood.ts';
import { encodeRequest, fitRequest } from './requests.ts';
import {
  addsBosToken,
  encodeItems,
  fewshotTexts,
  type ItemRecord,
  maxLengthOf,
  type ScoreOptions,
} from './scoring.ts';
import { indexOfLargest } from './tasks/choice_metrics.ts';
import type { ChoiceItem, ChoiceTask } from './tasks/task.ts';

/** Scores items in order. @throws ArgumentError naming the item before anything is computed, as encodeRequest and fitRequest */
export async function* scoreChoices(
  scored: ScoredModel,
  task: ChoiceTask,
  items: readonly ChoiceItem[],
  options: ScoreOptions<ChoiceItem>,
): AsyncGenerator<ItemRecord> {
  const model = scoredModel(scored);
  const maxLength = maxLengthOf(model, options);
  const encoder = { tokenizer: options.tokenizer, addBosToken: addsBosToken(model, options) };
  const { name, numFewshot, delimiter } = task;
  const example = ({ context, choices, gold }: ChoiceItem): string =>
    context + delimiter + choices[gold[0] as number];
  const examples = fewshotTexts({ name, numFewshot, example }, options);
  const encode = ({ description = '', context, choices }: ChoiceItem) => {
    const prompt = description + examples() + context;
    const fitted = choices.map((choice) =>
      fitRequest(encodeRequest(prompt, delimiter + choice, encoder), maxLength),
    );
    return {
      value: fitted.map(({ request }) => request),
      isCut: fitted.some(({ isCut }) => isCut),
    };
  };
  const encoded = await encodeItems(items, encode, options as ScoreOptions<never>);
  const { batchTokens, sharePrefixes, signal } = options;
  const groups = encoded.map(({ value }) => value);
  let next = 0;
  const scores = loglikelihoods(scored, groups, { batchTokens, sharePrefixes, signal });
  for await (const found of scores) {
    const { index, value, isCut } = encoded[next++] as (typeof encoded)[number];
    const item = items[index] as ChoiceItem;
    const values = found.map(({ loglikelihood }) => loglikelihood);
    const tokens = value.map(({ continuation }) => continuation.length);
    yield {
      index,
      metrics: task.measure(item, values, tokens),
      isCut,
      groups: item.groups,
      prediction: indexOfLargest(values),
      gold: item.gold,
      choices: found.map((one, i) => ({ text: item.choices[i] as string, ...one })),
    };
  }
}
