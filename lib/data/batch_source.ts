/** The data of a run as the trainer sees them: micro-batches in an order that can be resumed at any position. */
import type { Tokenizer } from '../text/tokenizer.ts';
import type { Batch } from './collate.ts';
import type { LabelScheme } from './labels.ts';

/**
 * Micro-batches whose order is a pure function of seed and epoch, so that a checkpoint only has to remember a position.
 */
export interface BatchSource<B = Batch> {
  /** Number of micro-batches in one epoch. */
  batchCount(epoch: number): number | Promise<number>;
  /** The micro-batches of an epoch from index `start` on. */
  batches(epoch: number, start: number): AsyncIterable<B> | Iterable<B>;
  /** A string that changes whenever the data, their order or their batching does; a checkpoint of other data is refused. */
  readonly fingerprint: string;
  /**
   * Options on which the fingerprint depends, by their names, where they are known: when a run is resumed with other data, the options
   * that differ are named. Values are plain JSON.
   */
  readonly settings?: Readonly<Record<string, unknown>>;
  /**
   * Rows of the largest micro-batch of an epoch, those of padding and of both sides of its examples included, where that is known without
   * reading the rows.
   */
  largestBatch?(epoch: number): number;
  /** Tokens of the longest example, where known, so that one the model cannot take is refused before the first step. */
  readonly statistics?: { readonly longest: number };
  /**
   * Meaning of the labels, where the data have labels and it is known: held-out data whose labels mean something else are refused.
   */
  readonly scheme?: LabelScheme;
  /** The tokenizer that encoded the data, where there is one. */
  readonly tokenizer?: Tokenizer;
}
