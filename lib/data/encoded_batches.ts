/** The common part of the micro-batches of all tasks, see `Dataset`. */
import type { Tokenizer } from '../text/tokenizer.ts';
import type { Dataset } from './dataset.ts';

/** Encoded rows, with what encoded them. `E` is an example, `B` a micro-batch. */
export interface Encoded<E, B> {
  readonly dataset: Dataset<E, B>;
  /** Description of the fields that are used, for people. */
  readonly format: string;
  readonly tokenizer: Tokenizer;
}

/** Micro-batches of encoded rows, in an order that is a function of seed and epoch. */
export abstract class EncodedBatches<E, B> {
  protected readonly dataset: Dataset<E, B>;
  /** Description of the fields that are used, for people. */
  readonly format: string;
  readonly tokenizer: Tokenizer;

  protected constructor({ dataset, format, tokenizer }: Encoded<E, B>) {
    this.dataset = dataset;
    this.format = format;
    this.tokenizer = tokenizer;
  }

  /** Number of micro-batches in an epoch (default: the first). It is the same for every one, except when packing. */
  batchCount(epoch = 0): number {
    return this.dataset.batchCount(epoch);
  }

  /** Indices of rows to show as examples: of each file the first that is trained on. */
  get firstRows(): readonly number[] {
    return this.dataset.firstRows;
  }

  /** The location of a row, for messages. */
  where(row: number): Promise<string> {
    return this.dataset.where(row);
  }
}
