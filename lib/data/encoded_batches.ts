/** The common part of the micro-batches of all tasks, see `Dataset`. */
import { createHash } from 'node:crypto';
import type { Tokenizer } from '../text/tokenizer.ts';
import type { Dataset, DatasetOptions } from './dataset.ts';

/** Encoded rows, with what encoded them. `E` is an example, `B` a micro-batch. */
export interface Encoded<E, B> {
  readonly dataset: Dataset<E, B>;
  /** Description of the fields that are used, for people. */
  readonly format: string;
  readonly tokenizer: Tokenizer;
  /** Options of the data, of which those are kept that the micro-batches depend on. */
  readonly options: DatasetOptions;
}

/** Options that change no micro-batch, beside the functions. */
const kWithoutInfluence: readonly string[] = ['cacheBytes', 'signal', 'onUnsupervised'];

/** The options that micro-batches depend on, each under its own name. */
function settingsOf({ corruption, ...options }: DatasetOptions): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries({ ...options, ...corruption }).filter(
      ([key, value]) =>
        !kWithoutInfluence.includes(key) && value !== undefined && typeof value !== 'function',
    ),
  );
}

/** Micro-batches of encoded rows, in an order that is a function of seed and epoch. */
export abstract class EncodedBatches<E, B> {
  protected readonly dataset: Dataset<E, B>;
  /** Description of the fields that are used, for people. */
  readonly format: string;
  readonly tokenizer: Tokenizer;
  /** The options that the micro-batches depend on, and the fields that were found. */
  readonly settings: Readonly<Record<string, unknown>>;

  protected constructor({ dataset, format, tokenizer, options }: Encoded<E, B>) {
    this.dataset = dataset;
    const { weights } = dataset;
    this.settings = {
      ...{ ...settingsOf(options), fields: format },
      ...(weights !== null && { dataWeights: weights }),
    };
    this.format = format;
    this.tokenizer = tokenizer;
  }

  /** Number of micro-batches in an epoch (default: the first). It is the same for every one, except when packing. */
  batchCount(epoch = 0): number {
    return this.dataset.batchCount(epoch);
  }

  /** Rows of the largest micro-batch of an epoch, those of padding and of both sides of its examples included. */
  largestBatch(epoch: number): number {
    return this.dataset.largestBatch(epoch);
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

/** Micro-batches whose examples are encoded again as they are used, with counts `S` over one epoch. */
export abstract class StreamedBatches<E, B, S> extends EncodedBatches<E, B> {
  readonly statistics: S;
  /** A string that changes with the ids of the examples and what is learnt of them, their order and their batching. */
  readonly fingerprint: string;

  /** @param settings what the micro-batches depend on beside the examples; the order of its fields counts */
  protected constructor(
    encoded: Encoded<E, B>,
    { statistics, settings }: { statistics: S; settings: object },
  ) {
    super(encoded);
    this.statistics = statistics;
    this.fingerprint = createHash('sha256')
      .update(encoded.dataset.digest)
      .update(JSON.stringify(settings))
      .digest('hex');
  }

  /** The micro-batches of an epoch from index `start` on. */
  batches(epoch: number, start = 0): AsyncGenerator<B> {
    return this.dataset.batches(epoch, start);
  }

  /** The example of a row, within the limits on its length. @throws as reading and encoding the row do */
  example(row: number): Promise<E> {
    return this.dataset.example(row);
  }
}
