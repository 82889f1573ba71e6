/** Scoring of generated answers: greedy text after a prompt, in which the answer is looked for. */
import { ArgumentError } from '../errors.ts';
import { generate } from '../generate/generate.ts';
import { type ScoredModel, scoredModel } from './loglikelihood.ts';
import {
  addsBosToken,
  encodeItems,
  fewshotTexts,
  type ItemRecord,
  maxLengthOf,
  type ScoreOptions,
} from './scoring.ts';
import { type CodeTask, type GenerationTask, isCodeTask, type QuestionItem } from './tasks/task.ts';

const kBatchSize = 16;
/** Batches of answers that are generated in one call, after which their records are complete. */
const kBatches = 2;

/**
 * Scores items in order. A prompt that leaves no room for the answer in the model's context is cut on the left. Answers that are
 * programs have no numbers before they are run (run_programs.ts).
 * @throws ArgumentError before anything is generated for maxNewTokens that fill the context
 */
export async function* scoreAnswers(
  scored: ScoredModel,
  task: GenerationTask | CodeTask,
  items: readonly QuestionItem[],
  options: ScoreOptions<QuestionItem>,
): AsyncGenerator<ItemRecord> {
  const model = scoredModel(scored);
  const { maxNewTokens = task.maxNewTokens, tokenizer, signal, batchSize = kBatchSize } = options;
  const room = maxLengthOf(model, options) - maxNewTokens;
  if (room < 1) {
    throw new ArgumentError(
      `score: ${maxNewTokens} new tokens leave no room for a prompt in the ${room + maxNewTokens} that the model reads; ` +
        'lower maxNewTokens (--max-new-tokens)',
    );
  }
  const { bosId } = tokenizer;
  const bos = addsBosToken(model, options) && bosId !== null ? [bosId] : [];
  // The items are those of the task, whose type the caller checks.
  const asked = task as GenerationTask;
  const examples = fewshotTexts(asked, options);
  const encode = (item: QuestionItem) => {
    const prompt = examples() + asked.prompt(item);
    const ids = [...bos, ...tokenizer.encode(prompt, { addSpecialTokens: false })];
    return { value: ids.slice(-room), isCut: ids.length > room };
  };
  const encoded = await encodeItems(items, encode, options as ScoreOptions<never>);
  const atOnce = kBatches * batchSize;
  for (let from = 0; from < encoded.length; from += atOnce) {
    const some = encoded.slice(from, from + atOnce);
    const results = await generate(scored, {
      ...{ tokenizer, maxNewTokens, batchSize, doSample: false, stopStrings: task.stopStrings },
      ids: some.map(({ value }) => value),
      signal,
    }).result;
    signal?.throwIfAborted();
    for (const [i, { index, isCut }] of some.entries()) {
      const item = items[index] as QuestionItem;
      const output = results[i]?.text as string;
      yield {
        index,
        ...(isCodeTask(task) ? { metrics: {} } : task.extract(item, output)),
        groups: item.groups,
        ...{ isCut, output, answer: item.answer },
      };
    }
  }
}
