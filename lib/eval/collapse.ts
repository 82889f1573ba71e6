/** Measures of a model's collapse, by the results that its scoring has anyway, and by its predictions on texts. */

import { checkKeys } from '../options/call.ts';
import { expectedCalibrationError, softmax } from './calibration.ts';
import { distinctN, selfBleu, tokenEntropy, wordsOf } from './diversity.ts';
import type { EvaluatedModel } from './evaluate.ts';
import { evaluate } from './evaluate.ts';
import { type ScoredModel, scoredModel } from './loglikelihood.ts';
import { classificationMetrics } from './metrics.ts';
import { prefixToken, rollingWindows } from './requests.ts';
import { type ItemRecord, maxLengthOf, type ScoreOptions } from './scoring.ts';
import type { ScoringTask, TaskMetrics, TextItem } from './tasks/task.ts';

/** The diversity of generated texts, by their words. */
export function outputDiversity(outputs: readonly string[]): TaskMetrics {
  const texts = outputs.map(wordsOf);
  const { entropy, normalized } = tokenEntropy(texts);
  return {
    distinct_1: distinctN(texts, 1),
    distinct_2: distinctN(texts, 2),
    distinct_3: distinctN(texts, 3),
    // One text has no other to be compared with.
    self_bleu_4: texts.length < 2 ? null : selfBleu(texts),
    word_entropy: entropy,
    word_entropy_normalised: normalized,
  };
}

/**
 * The calibration of a multiple choice: its confidence is the largest share of an answer in the probabilities of all answers. Where the
 * answers are classes, also the macro-F1 of the predictions.
 */
export function choiceCalibration(
  { hasClasses = false }: { readonly hasClasses?: boolean },
  records: readonly ItemRecord[],
): TaskMetrics {
  const scored = records.flatMap(({ choices = [], prediction, gold = [] }) => {
    if (prediction === undefined) return [];
    const shares = softmax(choices.map(({ loglikelihood }) => loglikelihood));
    const confidence = Math.min(1, shares[prediction] as number);
    return [
      { confidence, prediction, label: gold[0] as number, isRight: gold.includes(prediction) },
    ];
  });
  if (scored.length === 0) return {};
  const { ece } = expectedCalibrationError(
    scored.map(({ confidence }) => confidence),
    scored.map(({ isRight }) => isRight),
  );
  if (!hasClasses) return { ece };
  const [labels, predictions] = [
    scored.map(({ label }) => label),
    scored.map(({ prediction }) => prediction),
  ];
  const classes = [...labels, ...predictions].reduce((most, id) => Math.max(most, id), -1) + 1;
  return { ece, macro_f1: classificationMetrics(labels, predictions, classes).f1Macro };
}

/** The measures of collapse that the records of a task have by themselves; none for tasks without right answers or outputs. */
export function recordedCollapse(task: ScoringTask, records: readonly ItemRecord[]): TaskMetrics {
  if (task.kind === 'generation') {
    return outputDiversity(records.flatMap(({ output }) => (output === undefined ? [] : [output])));
  }
  const hasAccuracy = records.every(({ metrics }) => 'acc' in metrics);
  return task.kind === 'choice' && hasAccuracy ? choiceCalibration(task, records) : {};
}

/** Tokens of texts on which predictions are measured, so that long texts do not take twice the time of their perplexity. */
const kPredictedTokens = 8192;

/**
 * The predictions of a model on texts, of which at most the first 8192 tokens are read: mean entropy in nats and effective rank of
 * the logits, and for a tuned model the mean KL divergence from the model before tuning, in nats.
 */
export async function predictionCollapse(
  scored: ScoredModel,
  items: readonly TextItem[],
  options: Pick<ScoreOptions, 'tokenizer' | 'maxLength' | 'signal'>,
): Promise<TaskMetrics> {
  checkKeys('predictionCollapse', options, 'tokenizer maxLength signal');
  const model = scoredModel(scored);
  const { tokenizer, signal } = options;
  const prefix = prefixToken(tokenizer);
  const maxLength = Math.min(maxLengthOf(model, options), kPredictedTokens);
  let left = kPredictedTokens;
  const windows: number[][] = [];
  for (const { text } of items) {
    if (left <= 0) break;
    const ids = await tokenizer.withLongTexts(
      () => tokenizer.encode(text, { addSpecialTokens: false }),
      { signal },
    );
    const some = ids.slice(0, left);
    left -= some.length;
    for (const { context, continuation } of rollingWindows(some, { prefix, maxLength })) {
      windows.push([context.at(-1) as number, ...continuation]);
    }
  }
  const tuned: EvaluatedModel =
    'withTeacher' in scored
      ? scored
      : { model, hasTeacher: false, withTeacher: (body) => body(model) };
  const batches = windows.map((ids) => ({
    inputIds: Int32Array.from(ids.slice(0, -1)),
    positions: Int32Array.from(ids.slice(1), (_, i) => i),
    cuSeqlens: Int32Array.of(0, ids.length - 1),
    targets: Int32Array.from(ids.slice(1)),
  }));
  const found = await evaluate(tuned, batches, { signal });
  return {
    token_entropy: found.entropy,
    effective_rank: found.effectiveRank,
    ...(found.kl !== null && { kl_to_base: found.kl }),
  };
}
