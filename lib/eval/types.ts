/** What an evaluation reports. */

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
