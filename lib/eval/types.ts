/** Results of an evaluation. */
import type { LabelKind } from '../data/labels.ts';
import type { ClassificationMetrics, MultiLabelMetrics, RegressionMetrics } from './metrics.ts';

/** Options of an evaluation. */
export interface EvaluateOptions {
  /** Compare with the model as it was before tuning (default: where there is a teacher). Of no meaning to a classifier. */
  kl?: boolean;
  signal?: AbortSignal;
  /** After each batch: examples done. */
  onProgress?: (examples: number) => void;
}

/** Held-out numbers of any task. */
export type Evaluation = EvaluationResult | ClassifierEvaluation;

/** Held-out numbers, over the supervised tokens of the evaluation data. */
export interface EvaluationResult {
  /** Sum of the cross-entropy / supervised tokens, in nats. */
  readonly loss: number;
  readonly perplexity: number;
  readonly tokens: number;
  readonly supervisedTokens: number;
  /** KL(base || tuned) at T=1 over the whole vocabulary, nats a row; null without a teacher. */
  readonly kl: number | null;
  /** Entropy of the tuned model's prediction over the whole vocabulary, nats a row. */
  readonly entropy: number;
  /** exp of the entropy of sigma / sum(sigma) of the supervised rows' logits. */
  readonly effectiveRank: number;
  readonly seconds: number;
  readonly examples: readonly ExampleResult[];
}

/** Held-out numbers of one example. */
export interface ExampleResult {
  readonly index: number;
  readonly tokens: number;
  readonly supervisedTokens: number;
  /** Mean cross-entropy of the example's supervised tokens; null if it has none. */
  readonly loss: number | null;
}

/** Held-out numbers of a classifier. D labels. */
export interface ClassifierEvaluation {
  readonly problemType: LabelKind;
  /** Mean task loss of an example. */
  readonly loss: number;
  readonly examples: number;
  readonly tokens: number;
  /** By the kind of label: see `classificationMetrics`, `regressionMetrics`, `multiLabelMetrics`. */
  readonly metrics: ClassificationMetrics | RegressionMetrics | MultiLabelMetrics;
  /** By row of the data: class ids, numbers, or D zeros and ones each. */
  readonly predictions: readonly (number | readonly number[])[];
  readonly labels: readonly (number | readonly number[])[];
  readonly seconds: number;
}
