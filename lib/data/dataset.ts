/**
 * The data pipeline that every task shares: rows -> examples -> an order -> micro-batches. An `ExampleKind` defines the examples of
 * a task, and how several become a micro-batch. Every row is read once at the start: damaged rows and missing fields are reported
 * before the first step instead of hours into a run, and lengths are known for packing. The order of an epoch is a pure function of
 * seed and epoch, so that a checkpoint only remembers a position.
 */
import { createHash, type Hash } from 'node:crypto';
import { crc32 } from 'node:zlib';
import { ArgumentError, NativeError } from '../errors.ts';
import {
  type CallTable,
  checkArgument,
  checkCall,
  kCall,
  wholeNumber,
  withMethods,
} from '../options/call.ts';
import { DEFAULT_SEED } from '../options/option.ts';
import type { Tokenizer } from '../text/tokenizer.ts';
import type { CorruptionOptions } from './corruption_options.ts';
import { BATCH_SIZES, DATA_DEFAULTS } from './data_options.ts';
import { type EpochOrder, epochOrder, type OrderOptions } from './grouping.ts';
import { arrayRows, type Row, type RowFile, type RowSource, withRowLocation } from './rows.ts';

/** A hash that examples are added to. */
interface ExampleHash {
  update(data: string | NodeJS.ArrayBufferView): ExampleHash;
}

/** Conversion of the rows of one task to examples, and of examples to micro-batches. `E` is an example, `B` a micro-batch. */
export interface ExampleKind<E, B> {
  /**
   * Encodes a row as an example within the length limits, with a flag for each side of the example (such as source and target) that
   * says whether it was truncated. It must be a pure function of the row and its index, since a row that is not kept in memory is
   * encoded again.
   * @throws ArgumentError about the contents of the row; the row's place is put in front of the message
   */
  encode(row: Row, index: number): { readonly example: E; readonly cut: readonly boolean[] };
  /** Number of tokens in an example, which packing adds up and grouping by length compares. */
  length(example: E): number;
  /** Whether the examples of a micro-batch are padded to the longest of them. Default false. */
  readonly isPadded?: boolean;
  /** Bytes that an example takes in memory. */
  bytes(example: E): number;
  /** Feeds a digest with everything in the example that a step depends on. */
  digest(example: E, hash: ExampleHash): void;
  /** Puts examples into one micro-batch. @param indices index of each example's row in the data */
  collate(examples: readonly E[], indices: Uint32Array): B;
}

/** Options of every kind of data. */
export interface DatasetOptions {
  /** Number of examples in a micro-batch. Default 1; that of `balora train` is 8. */
  batchSize?: number;
  /** Whether to shuffle each epoch. Default true; false: the rows' own order in every epoch. */
  shuffle?: boolean;
  /** Seed of the order. Default 42. */
  seed?: number;
  /** Called regularly with the number of rows that have been read, and the number of all rows. */
  onProgress?: (rowsRead: number, rows: number) => void;
  /** Bytes of encoded examples kept in memory. Default 64 MiB. */
  cacheBytes?: number;
  /** Signal that aborts the reading with its reason. */
  signal?: AbortSignal;
  /** Corruptions of the rows on purpose, for studies. Default: none. */
  corruption?: CorruptionOptions;
}

/** The kinds of the options of every kind of data. */
export const datasetTable: CallTable<DatasetOptions> = {
  batchSize: wholeNumber({ least: 1 }),
  shuffle: kCall.boolean,
  seed: wholeNumber({ least: 0 }),
  onProgress: kCall.function,
  cacheBytes: kCall.amount,
  signal: kCall.signal,
  corruption: kCall.object,
};

/** The other arguments of the functions that make micro-batches. */
const kSourceOfRows = withMethods('a list of rows, or what openRows() returns', 'row', 'where');
const kTokenizer = withMethods('a Tokenizer', 'encode', 'encodePair');

/** A warning about the data for the user. */
export interface DataWarning {
  readonly code:
    | 'answers_empty'
    | 'examples_masked'
    | 'examples_skipped'
    | 'examples_truncated'
    | 'data_corrupted';
  readonly message: string;
}

/** Options of {@link Dataset.read}. */
export interface ReadOptions<E>
  extends Pick<DatasetOptions, 'cacheBytes' | 'onProgress' | 'signal'> {
  readonly order: OrderOptions;
  /** The tokenizer that the kind encodes with: its long texts do not block the event loop. Default: they do. */
  readonly tokenizer?: Tokenizer;
  /** A digest that the examples are added to, for data that must be hashed before them. Default: a new one. */
  readonly hash?: Hash;
  /** Called for every example in the order of the rows; false leaves it out. Default: all are kept. */
  readonly keep?: (example: E, index: number) => boolean | Promise<boolean>;
}

/** Counts of the data over one epoch. */
export interface DatasetCounts {
  readonly rows: number;
  /** Number of rows that are kept. */
  readonly examples: number;
  /** Number of tokens in these rows, after cutting. */
  readonly tokens: number;
  readonly longest: number;
  /** Number of rows that were truncated on any side, whether they are kept or not. */
  readonly truncated: number;
  /** Number of truncated rows for each side. */
  readonly truncatedSides: readonly number[];
}

const kDefaultCacheBytes = 64 << 20;
/** Number of rows encoded, and milliseconds, between two yields to the event loop. */
const kRowsPerYield = 64;
const kMsPerYield = 20;

/** Examples of one kind, in micro-batches; the comment at the top of this file describes the pipeline. */
export class Dataset<E, B> {
  readonly #order: OrderOptions;
  readonly #tokenizer: Tokenizer | undefined;
  /** Number of tokens of each row. */
  readonly #lengths: Uint32Array;
  readonly #cache = new Map<number, E>();
  /** CRC-32 of each example that is not in the cache. */
  readonly #checksums: Uint32Array;
  #cacheLeft: number;
  #kept: Uint32Array;
  #counts: DatasetCounts | null = null;
  #digest: Buffer | null = null;
  #epoch: (EpochOrder & { readonly epoch: number }) | null = null;

  private constructor(
    private readonly rows: RowSource,
    private readonly kind: ExampleKind<E, B>,
    options: ReadOptions<E>,
  ) {
    this.#order = { ...options.order, files: isWeighted(rows.files) ? rows.files : undefined };
    this.#tokenizer = options.tokenizer;
    this.#lengths = new Uint32Array(rows.length);
    this.#checksums = new Uint32Array(rows.length);
    this.#kept = new Uint32Array(rows.length);
    this.#cacheLeft = options.cacheBytes ?? kDefaultCacheBytes;
  }

  /**
   * Reads and encodes every row once.
   * @throws what the kind's `encode` does, with the row's place; what `keep` throws; FormatError for damaged data
   */
  static async read<E, B>(
    rows: RowSource,
    kind: ExampleKind<E, B>,
    options: ReadOptions<E>,
  ): Promise<Dataset<E, B>> {
    const dataset = new Dataset(rows, kind, options);
    await dataset.#read(options);
    return dataset;
  }

  get counts(): DatasetCounts {
    return this.#counts as DatasetCounts;
  }

  /** SHA-256 of all examples in the order of the rows, those that are left out included. */
  get digest(): Buffer {
    return this.#digest as Buffer;
  }

  /** The shares of the files that an epoch is mixed from; null where each row comes once. */
  get weights(): readonly number[] | null {
    return this.#order.files?.map(({ weight }) => weight as number) ?? null;
  }

  /** Number of micro-batches in an epoch (when packing, it depends on the order). */
  batchCount(epoch: number): number {
    return this.#orderOf(epoch).starts.length - 1;
  }

  /** Rows of the largest micro-batch of an epoch, those of padding and of both sides of its examples included. */
  largestBatch(epoch: number): number {
    const { isPadded = false } = this.kind;
    let largest = 0;
    for (const group of this.groups(epoch)) {
      let [tokens, longest] = [0, 0];
      for (const row of group) {
        const length = this.#lengths[row] as number;
        tokens += length;
        longest = Math.max(longest, length);
      }
      largest = Math.max(largest, isPadded ? group.length * longest : tokens);
    }
    return largest;
  }

  /** The first row of each file that is kept, without those of files none of whose rows is. */
  get firstRows(): number[] {
    const files = this.rows.files ?? [{ start: 0, length: this.rows.length }];
    return files.flatMap(({ start, length }) => {
      const first = this.#kept.find((index) => index >= start && index < start + length);
      return first === undefined ? [] : [first];
    });
  }

  /** The location of a row, for messages. */
  where(index: number): Promise<string> {
    return this.rows.where(index);
  }

  /** The rows of each micro-batch of an epoch, from micro-batch `start` on. */
  *groups(epoch: number, start = 0): Generator<Uint32Array> {
    const { order, starts } = this.#orderOf(epoch);
    for (let g = start; g + 1 < starts.length; g++) yield order.subarray(starts[g], starts[g + 1]);
  }

  /** The micro-batches of an epoch, from micro-batch `start` on. */
  async *batches(epoch: number, start = 0): AsyncGenerator<B> {
    for (const indices of this.groups(epoch, start)) {
      const examples: E[] = [];
      for (const index of indices) examples.push(await this.example(index));
      yield this.kind.collate(examples, indices);
    }
  }

  /**
   * The example of a row: from memory, or encoded again.
   * @throws NativeError (`ERR_FILE_CHANGED`) if it is not the one that was read at first; as reading and encoding the row do
   */
  async example(index: number): Promise<E> {
    const kept = this.#cache.get(index);
    if (kept !== undefined) return kept;
    const { example } = await this.#encode(index);
    if (checksumOf(this.kind, example) === this.#checksums[index]) return example;
    const where = await this.rows.where(index);
    throw new NativeError(`${where}: the row is not what it was when the data were read first`, {
      code: 'ERR_FILE_CHANGED',
    });
  }

  /**
   * Collates the examples of rows into one micro-batch, without waiting.
   * @throws ArgumentError for a row that is not kept in memory
   */
  collateKept(indices: Uint32Array): B {
    const examples = Array.from(indices, (index) => {
      const example = this.#cache.get(index);
      if (example === undefined) {
        throw new ArgumentError(
          `data: there is no example ${index}; ask for one below ${this.rows.length}`,
        );
      }
      return example;
    });
    return this.kind.collate(examples, indices);
  }

  async #read(options: ReadOptions<E>): Promise<void> {
    const { hash = createHash('sha256'), keep } = options;
    const { length: rows } = this.rows;
    let [examples, tokens, longest, truncated] = [0, 0, 0, 0];
    const truncatedSides: number[] = [];
    await forEachRow(this.rows, options, async (index) => {
      const { example, cut } = await this.#encode(index, options.signal);
      const length = this.kind.length(example);
      this.#lengths[index] = length;
      if (!this.#remember(index, example)) {
        this.#checksums[index] = checksumOf(this.kind, example);
      }
      this.kind.digest(example, hash);
      truncated += Number(cut.includes(true));
      cut.forEach((was, side) => {
        truncatedSides[side] = (truncatedSides[side] ?? 0) + Number(was);
      });
      if (keep !== undefined && !(await keep(example, index))) return;
      this.#kept[examples++] = index;
      tokens += length;
      longest = Math.max(longest, length);
    });
    this.#kept = this.#kept.slice(0, examples);
    const { files } = this.rows;
    // Files without weights are one list of rows, whose examples are in the digest.
    if (isWeighted(files)) {
      hash.update(JSON.stringify({ files }));
      await requireExamples(this.rows, files, this.#kept);
    }
    if (this.rows.recipe !== undefined) hash.update(JSON.stringify(this.rows.recipe));
    this.#digest = hash.digest();
    this.#counts = { rows, examples, tokens, longest, truncated, truncatedSides };
  }

  async #encode(index: number, signal?: AbortSignal) {
    const row = await this.rows.row(index);
    const encode = () => this.kind.encode(row, index);
    return withRowLocation(
      this.rows,
      index,
      () => this.#tokenizer?.withLongTexts(encode, { signal }) ?? encode(),
    );
  }

  /** Keeps an example in memory if there is room, and returns whether there is. */
  #remember(index: number, example: E): boolean {
    const bytes = this.kind.bytes(example);
    if (bytes > this.#cacheLeft) return false;
    this.#cacheLeft -= bytes;
    this.#cache.set(index, example);
    return true;
  }

  #orderOf(epoch: number): EpochOrder {
    if (this.#epoch?.epoch !== epoch) {
      this.#epoch = { epoch, ...epochOrder(this.#kept, this.#lengths, epoch, this.#order) };
    }
    return this.#epoch;
  }
}

/** Whether files have weights: either all of them do, or none. */
function isWeighted(files: readonly RowFile[] | undefined): files is readonly RowFile[] {
  return files?.some(({ weight }) => weight !== null) ?? false;
}

/** Refuses a file with a weight none of whose rows is trained on: no epoch could have its share. @throws ArgumentError */
async function requireExamples(
  rows: RowSource,
  files: readonly RowFile[],
  kept: Uint32Array,
): Promise<void> {
  for (const { start, length } of files) {
    if (kept.some((index) => index >= start && index < start + length)) continue;
    throw new ArgumentError(
      `${await rows.where(start)}: no row of this file can be trained on, so that its weight in dataWeights has no meaning; leave the file out`,
    );
  }
}

/** The CRC-32 of everything in an example that a step depends on. */
function checksumOf<E>(kind: Pick<ExampleKind<E, unknown>, 'digest'>, example: E): number {
  let crc = 0;
  const hash: ExampleHash = {
    update: (data) => {
      crc = crc32(data, crc);
      return hash;
    },
  };
  kind.digest(example, hash);
  return crc;
}

/**
 * Visits the rows by their indices, in order, yielding to the event loop and checking the signal in between.
 * @throws the signal's reason, and what `visit` throws
 */
export async function forEachRow(
  { length }: RowSource,
  { signal, onProgress }: Pick<DatasetOptions, 'signal' | 'onProgress'>,
  visit: (index: number) => Promise<void>,
): Promise<void> {
  let yieldedAt = 0;
  for (let index = 0; index < length; index++) {
    const regular = index % kRowsPerYield === 0;
    if (regular || performance.now() - yieldedAt > kMsPerYield) {
      signal?.throwIfAborted();
      if (regular) onProgress?.(index, length);
      await new Promise((resolve) => setImmediate(resolve));
      yieldedAt = performance.now();
    }
    await visit(index);
  }
}

/** The options of the order with their defaults. */
export function orderOptions({
  batchSize = BATCH_SIZES.library,
  shuffle = DATA_DEFAULTS.shuffle,
  seed = DEFAULT_SEED,
}: DatasetOptions): OrderOptions {
  return { batchSize, shuffle, seed };
}

/** Rows that micro-batches are made of: a source of them, or the rows themselves. */
export type GivenRows = RowSource | readonly Row[];

/**
 * Checks what a function that makes micro-batches was given.
 * @returns the source of the rows
 * @throws ArgumentError naming the argument or the option
 */
export function checkData<T extends object>(
  { rows, tokenizer }: { rows: GivenRows; tokenizer: unknown },
  options: T,
  table: CallTable<T>,
): RowSource {
  const isList = Array.isArray(rows);
  if (!isList) checkArgument('data: rows', kSourceOfRows, rows);
  checkArgument('data: tokenizer', kTokenizer, tokenizer);
  checkCall('data', options, table);
  return isList ? arrayRows(rows) : (rows as RowSource);
}

/** The warning that `truncated` of the rows were cut. */
export function truncationWarning(
  truncated: number,
  { rows, what, maxLength }: { rows: number; what: string; maxLength: number },
): DataWarning {
  const message = `${truncated} of ${rows} ${what} are longer than ${maxLength} tokens and were cut`;
  return { code: 'examples_truncated', message };
}
