/** Results of an evaluation. */
import { z } from 'zod';
import type { LabelKind } from '../data/labels.ts';
import { type CallKind, type CallTable, checkArgument, checkCall, kCall } from '../options/call.ts';
import type { ClassificationMetrics, MultiLabelMetrics, RegressionMetrics } from './metrics.ts';

/** Options of an evaluation. */
export interface EvaluateOptions {
  /** Whether to compute the KL divergence from the base model; not used for classifiers. Default: whether there is a teacher. */
  kl?: boolean;
  /** Limit, in bytes, on the logits of a language model that are computed at one time. Default 0: that of the device. */
  chunkBytes?: number;
  /** Signal that aborts the evaluation with its reason. */
  signal?: AbortSignal;
  /** Called after each batch with the number of examples evaluated so far. */
  onProgress?: (examples: number) => void;
}

/** The kinds of the options. */
const kTable: CallTable<EvaluateOptions> = {
  kl: kCall.boolean,
  chunkBytes: kCall.amount,
  signal: kCall.signal,
  onProgress: kCall.function,
};

/**
 * Checks the arguments of an evaluation.
 * @param kind what the model must be
 * @throws ArgumentError naming the argument or the option
 */
export function checkEvaluation(
  { model, kind, batches }: { model: unknown; kind: CallKind; batches: unknown },
  options: EvaluateOptions,
): void {
  checkArgument('evaluate: the model', kind, model);
  checkArgument('evaluate: the data', kCall.batches, batches);
  checkCall('evaluate', options, kTable);
}

/** The result of an evaluation, for any task. */
export type Evaluation = EvaluationResult | ClassifierEvaluation;

/** The fields of an {@link Evaluation} that are texts. */
export const EVALUATION_TEXTS: readonly string[] = ['problemType'];

/** The result of evaluating a language model on the supervised tokens of the data. */
export interface EvaluationResult {
  /** Mean cross-entropy of the supervised tokens, in nats. */
  readonly loss: number;
  readonly perplexity: number;
  readonly tokens: number;
  readonly supervisedTokens: number;
  /** Mean KL(base || tuned) of the supervised rows over the whole vocabulary at T = 1, in nats; null without a teacher. */
  readonly kl: number | null;
  /** Mean entropy of the tuned model's predictions over the whole vocabulary, in nats. */
  readonly entropy: number;
  /** Effective rank of the supervised rows' logits: exp of the entropy of their singular values sigma / sum(sigma). */
  readonly effectiveRank: number;
  readonly seconds: number;
  readonly examples: readonly ExampleResult[];
}

/** The result of one example. */
export interface ExampleResult {
  /** Index of the example's row in the data. */
  readonly index: number;
  readonly tokens: number;
  readonly supervisedTokens: number;
  /** Mean cross-entropy of the example's supervised tokens; null if it has none. */
  readonly loss: number | null;
}

/** The result of evaluating a classifier with D labels. */
export interface ClassifierEvaluation {
  readonly problemType: LabelKind;
  /** Mean task loss of the examples. */
  readonly loss: number;
  readonly examples: number;
  readonly tokens: number;
  /** Metrics by the problem type: see `classificationMetrics`, `regressionMetrics`, `multiLabelMetrics`. */
  readonly metrics: ClassificationMetrics | RegressionMetrics | MultiLabelMetrics;
  /** Prediction for each row of the data: a class id, a number, or D zeros and ones. */
  readonly predictions: readonly (number | readonly number[])[];
  /** Label of each row of the data, in the same form. */
  readonly labels: readonly (number | readonly number[])[];
  readonly seconds: number;
}

/** A number that may be infinite or NaN. */
const kNumber = z.custom<number>((value) => typeof value === 'number');
const kNumbers = { loss: kNumber, tokens: kNumber, seconds: kNumber };
const kEvaluation = z.union([
  z.looseObject({
    ...kNumbers,
    perplexity: kNumber,
    supervisedTokens: kNumber,
    kl: kNumber.nullable(),
    entropy: kNumber,
    effectiveRank: kNumber,
    examples: z.array(z.looseObject({ index: z.int() })),
    metrics: z.undefined().optional(),
  }),
  z.looseObject({
    ...kNumbers,
    problemType: z.string(),
    examples: kNumber,
    metrics: z.looseObject({}),
    predictions: z.array(z.unknown()),
    labels: z.array(z.unknown()),
  }),
]);

/** Whether a value that was read from a file has the form of an evaluation. */
export function isEvaluation(value: unknown): value is Evaluation {
  return kEvaluation.safeParse(value).success;
}
