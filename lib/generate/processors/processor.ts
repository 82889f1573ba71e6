/** The interface of a logits processor: a change of the scores of one sequence before its next token is chosen. */
import type { OptionTable, ResolvedOf } from '../../options/option.ts';

/** The facts about a sequence that a processor may use. */
export interface ProcessorContext {
  /** Every id of the prompt and of the new tokens; for an encoder-decoder, of the decoder's side. */
  readonly seen: ReadonlySet<number>;
  /** Number of new tokens so far. */
  readonly newTokens: number;
  /** Ids that end a sequence. */
  readonly eosTokenIds: ReadonlySet<number>;
}

/**
 * Changes the scores (V) of the next token in place. A score of minus infinity excludes its id; at least one other is finite when a
 * processor is called, and must be afterwards. No score is NaN.
 */
export type LogitsProcessor = (scores: Float32Array, context: ProcessorContext) => void;

/** The definition of a processor: its options, and how it is made of them. list.ts has all of them in their order. */
export interface ProcessorDefinition<S extends OptionTable = OptionTable> {
  /** Options in the order of the help, under the names of transformers in camel case. */
  readonly options: S;
  /** Whether the processor shapes the distribution that is drawn from, and is left out of greedy decoding. */
  readonly sampling: boolean;
  /** Makes the processor, whose scratch memory is its own; null where the options have their neutral values. */
  create(options: ResolvedOf<S>): LogitsProcessor | null;
}
