/** The data of a run as the trainer sees them: micro-batches in an order that it can come back to. */
import type { Batch } from './collate.ts';
import type { LabelScheme } from './labels.ts';

/**
 * Micro-batches whose order is a pure function of seed and epoch, so that a checkpoint only has to remember a position.
 */
export interface BatchSource<B = Batch> {
  /** Micro-batches of one epoch. */
  batchCount(epoch: number): number | Promise<number>;
  /** The micro-batches of an epoch from index `start` on. */
  batches(epoch: number, start: number): AsyncIterable<B> | Iterable<B>;
  /** Changes whenever the data, their order or their batching does; a checkpoint of other data is refused. */
  readonly fingerprint: string;
  /** Where it is known: tokens of the longest example, so that one the model cannot take is refused before the first step. */
  readonly statistics?: { readonly longest: number };
  /** Of labelled data, where it is known: what the labels mean, so that held-out data which mean something else are refused. */
  readonly scheme?: LabelScheme;
}
