/** Scoring of whole texts: their log-likelihood, in windows where they are longer than the context. */
import { ArgumentError } from '../errors.ts';
import { loglikelihoods, type ScoredModel, scoredModel } from './loglikelihood.ts';
import { countWords } from './python_text.ts';
import { prefixToken, rollingWindows } from './requests.ts';
import { encodeItems, type ItemRecord, maxLengthOf, type ScoreOptions } from './scoring.ts';
import type { ItemMetrics, TextItem } from './tasks/task.ts';

/** Window length where the model's context has no limit. */
const kUnlimited = 2048;

const kEncoder = new TextEncoder();

/** Scores texts in order. @throws ArgumentError naming the text before anything is computed, for one without a token */
export async function* scoreTexts(
  scored: ScoredModel,
  items: readonly TextItem[],
  options: ScoreOptions<TextItem>,
): AsyncGenerator<ItemRecord> {
  const model = scoredModel(scored);
  const most = maxLengthOf(model, options);
  const maxLength = Number.isFinite(most) ? most : kUnlimited;
  const { tokenizer, batchTokens, sharePrefixes, signal } = options;
  const prefix = prefixToken(tokenizer);
  const encode = ({ text }: TextItem) => {
    const ids = tokenizer.encode(text, { addSpecialTokens: false });
    if (ids.length === 0) throw new ArgumentError('score: the text has no token; leave it out');
    return { value: rollingWindows(ids, { prefix, maxLength }), isCut: false };
  };
  const encoded = await encodeItems(items, encode, options as ScoreOptions<never>);
  // One group for each window, so that the windows of a long text need not be in one forward.
  const windows = encoded.flatMap(({ value }) => value.map((window) => [window]));
  const found = loglikelihoods(scored, windows, { batchTokens, sharePrefixes, signal });
  for (const { index, value, isCut } of encoded) {
    let loglikelihood = 0;
    for (const _ of value) {
      const { value: one } = await found.next();
      loglikelihood += one[0].loglikelihood;
    }
    yield { index, metrics: measure(items[index] as TextItem, loglikelihood), isCut };
  }
}

function measure({ text, original = text }: TextItem, loglikelihood: number): ItemMetrics {
  const bytes = kEncoder.encode(original).length;
  return { loglikelihood, words: countWords(original), bytes };
}
