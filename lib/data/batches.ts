/**
 * The data pipeline's end: rows -> examples -> micro-batches in an order that is a pure function of seed and epoch, so that a
 * checkpoint only remembers a position. Creating it reads every row once: damaged rows, missing fields and examples without a
 * supervised token come up before the first step instead of hours into a run, and lengths are known for packing.
 */
import { createHash } from 'node:crypto';
import { ArgumentError, BaloraError, FormatError, UnsupportedError } from '../errors.ts';
import type { Tokenizer } from '../text/tokenizer.ts';
import { type Batch, collate } from './collate.ts';
import { type Example, supervisedCount, truncate } from './example.ts';
import { chooseFormat, type ExampleFormat, type FormatOptions } from './example_format.ts';
import { groupStarts } from './grouping.ts';
import { shuffledOrder } from './philox.ts';
import type { RowSource } from './rows.ts';

/** How rows become micro-batches. */
export interface BatchOptions extends FormatOptions {
  /** Examples (rows, when packing) a micro-batch. Default 1. */
  batchSize?: number;
  /** Longer examples are cut. Default 512. */
  maxLength?: number;
  /** Several examples in a row of `maxLength` tokens. Default false. */
  packing?: boolean;
  /** Default `none`: rows are not padded. */
  padding?: 'none' | 'longest';
  /** Default true; false: the rows' own order in every epoch. */
  shuffle?: boolean;
  /** Default 42. */
  seed?: number;
  /** An example without any supervised token (all cut off): leave it out with a warning, or fail. Default skip. */
  onUnsupervised?: 'skip' | 'error';
  /** What the user should know; the default drops it. */
  onWarning?: (warning: DataWarning) => void;
  /** Told now and then how many of the rows have been read. */
  onProgress?: (rowsRead: number, rows: number) => void;
  /** Bytes of encoded examples kept in memory. Default 64 MiB. */
  cacheBytes?: number;
  signal?: AbortSignal;
}

/** Something about the data that a user should know. */
export interface DataWarning {
  readonly code: 'examples_skipped' | 'examples_truncated';
  readonly message: string;
}

/** Counts over one epoch. */
export interface DataStatistics {
  /** Rows read. */
  readonly rows: number;
  /** Rows that take part. */
  readonly examples: number;
  readonly skipped: number;
  readonly truncated: number;
  /** Of one epoch, after cutting. */
  readonly tokens: number;
  readonly supervisedTokens: number;
  readonly longest: number;
}

type Settings = Required<
  Pick<BatchOptions, 'batchSize' | 'maxLength' | 'packing' | 'padding' | 'shuffle' | 'seed'>
>;

const kDefaultCacheBytes = 64 << 20;
/** Rows encoded between two looks at the event loop. */
const kRowsATurn = 64;

/** Micro-batches of encoded examples; the trainer's usual data source. */
export class Batches {
  private epochGroups: { epoch: number; order: Uint32Array; starts: Uint32Array } | null = null;

  private constructor(
    private readonly source: ExampleSource,
    private readonly settings: Settings,
    private readonly kept: Uint32Array,
    private readonly padId: number,
    readonly statistics: DataStatistics,
    /** Changes with the examples' ids and supervision, their order and their batching. */
    readonly fingerprint: string,
  ) {}

  /**
   * Reads and encodes every row once.
   * @throws ArgumentError for a row without the fields (naming it), or when no example has a supervised token
   * @throws FormatError for damaged data
   */
  static async create(
    rows: RowSource,
    tokenizer: Tokenizer,
    options: BatchOptions = {},
  ): Promise<Batches> {
    const settings = checkedSettings(options);
    const format = await at(rows, 0, async () =>
      chooseFormat(tokenizer, await rows.row(0), options),
    );
    const source = new ExampleSource(rows, format, {
      maxLength: settings.maxLength,
      cacheBytes: options.cacheBytes ?? kDefaultCacheBytes,
    });
    const { kept, statistics, digest } = await measure(source, options);
    const fingerprint = createHash('sha256')
      .update(digest)
      .update(JSON.stringify(settings))
      .digest('hex');
    const padId = tokenizer.padId ?? tokenizer.eosId ?? 0;
    return new Batches(source, settings, kept, padId, statistics, fingerprint);
  }

  /** For people: which fields are used. */
  get format(): string {
    return this.source.format.description;
  }

  /** Micro-batches of an epoch (when packing, the count depends on the order). */
  batchCount(epoch: number): number {
    return this.groups(epoch).starts.length - 1;
  }

  /** The micro-batches of an epoch from index `start` on. */
  async *batches(epoch: number, start = 0): AsyncGenerator<Batch> {
    const { order, starts } = this.groups(epoch);
    for (let g = start; g + 1 < starts.length; g++) {
      const indices = order.subarray(starts[g], starts[g + 1]);
      const examples: Example[] = [];
      for (const index of indices) examples.push(await this.source.example(index));
      yield collate(examples, { padding: this.settings.padding, padId: this.padId, indices });
    }
  }

  private groups(epoch: number): { order: Uint32Array; starts: Uint32Array } {
    if (this.epochGroups?.epoch !== epoch) {
      const { shuffle, seed, batchSize, packing, maxLength } = this.settings;
      const order = shuffle
        ? shuffledOrder(this.kept.length, seed, epoch).map((i) => this.kept[i] as number)
        : this.kept;
      const starts = groupStarts(order, this.source.lengths, {
        batchSize,
        ...(packing ? { packInto: maxLength } : {}),
      });
      this.epochGroups = { epoch, order, starts };
    }
    return this.epochGroups;
  }
}

/** Encoded examples by row, the first ones kept in memory. */
class ExampleSource {
  readonly lengths: Uint32Array;
  private readonly cache = new Map<number, Example>();
  private cacheLeft: number;
  /** Rows that were longer than maxLength. */
  truncated = 0;

  constructor(
    readonly rows: RowSource,
    readonly format: ExampleFormat,
    private readonly options: { maxLength: number; cacheBytes: number },
  ) {
    this.lengths = new Uint32Array(rows.length);
    this.cacheLeft = options.cacheBytes;
  }

  async example(index: number): Promise<Example> {
    return this.cache.get(index) ?? (await this.encode(index));
  }

  /** Encodes a row for the first time: counts it and keeps it if there is room. */
  async first(index: number): Promise<Example> {
    const example = await this.encode(index, () => this.truncated++);
    this.lengths[index] = example.ids.length;
    const bytes = example.ids.byteLength + example.supervised.byteLength;
    if (bytes <= this.cacheLeft) {
      this.cacheLeft -= bytes;
      this.cache.set(index, example);
    }
    return example;
  }

  private async encode(index: number, onCut?: () => void): Promise<Example> {
    const row = await this.rows.row(index);
    const whole = await at(this.rows, index, async () => this.format.encode(row));
    if (whole.ids.length > this.options.maxLength) onCut?.();
    return truncate(whole, this.options.maxLength);
  }
}

async function measure(
  source: ExampleSource,
  {
    onUnsupervised = 'skip',
    onWarning,
    onProgress,
    signal,
    maxLength = kDefaultMaxLength,
  }: BatchOptions,
): Promise<{ kept: Uint32Array; statistics: DataStatistics; digest: Buffer }> {
  const { rows } = source;
  const hash = createHash('sha256');
  const kept = new Uint32Array(rows.length);
  let [examples, tokens, supervisedTokens, longest] = [0, 0, 0, 0];
  let firstSkipped: number | null = null;
  for (let index = 0; index < rows.length; index++) {
    if (index % kRowsATurn === 0) {
      signal?.throwIfAborted();
      onProgress?.(index, rows.length);
      await new Promise((resolve) => setImmediate(resolve));
    }
    const example = await source.first(index);
    hash.update(`${example.ids.length};`).update(example.ids).update(example.supervised);
    const supervised = supervisedCount(example);
    if (supervised === 0) {
      if (onUnsupervised === 'error') throw await unsupervised(rows, index, maxLength);
      firstSkipped ??= index;
      continue;
    }
    kept[examples++] = index;
    tokens += example.ids.length;
    supervisedTokens += supervised;
    longest = Math.max(longest, example.ids.length);
  }
  const skipped = rows.length - examples;
  if (firstSkipped !== null) {
    if (examples === 0) {
      const { message } = await unsupervised(rows, firstSkipped, maxLength);
      throw new ArgumentError(`${message}, nor in any of the ${rows.length} rows`);
    }
    const where = await rows.where(firstSkipped);
    const message = `${skipped} of ${rows.length} examples have no supervised token within ${maxLength} tokens and are left out (first: ${where})`;
    onWarning?.({ code: 'examples_skipped', message });
  }
  const { truncated } = source;
  if (truncated > skipped) {
    const message = `${truncated} of ${rows.length} examples are cut to ${maxLength} tokens`;
    onWarning?.({ code: 'examples_truncated', message });
  }
  return {
    kept: kept.slice(0, examples),
    digest: hash.digest(),
    statistics: {
      rows: rows.length,
      examples,
      skipped,
      truncated,
      tokens,
      supervisedTokens,
      longest,
    },
  };
}

async function unsupervised(rows: RowSource, index: number, maxLength: number): Promise<Error> {
  const where = await rows.where(index);
  return new ArgumentError(`${where}: no supervised token within ${maxLength} tokens (maxLength)`);
}

const kDefaultMaxLength = 512;

function checkedSettings(options: BatchOptions): Settings {
  const { batchSize = 1, maxLength = kDefaultMaxLength, packing = false } = options;
  const { padding = 'none', shuffle = true, seed = 42 } = options;
  const positive = (name: string, value: number, least: number) => {
    if (Number.isSafeInteger(value) && value >= least) return;
    throw new ArgumentError(`data: ${name} must be an integer of at least ${least}, got ${value}`);
  };
  positive('batchSize', batchSize, 1);
  positive('maxLength', maxLength, 2);
  positive('seed', seed, 0);
  if (packing && padding !== 'none') {
    throw new ArgumentError("data: packing excludes padding: 'longest'");
  }
  return { batchSize, maxLength, packing, padding, shuffle, seed };
}

/** Puts the row's place on an error about its contents. */
async function at<T>(rows: RowSource, index: number, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof BaloraError) || (error instanceof FormatError && error.path))
      throw error;
    const message = `${await rows.where(index)}: ${error.message}`;
    throw error instanceof UnsupportedError
      ? new UnsupportedError(message)
      : new ArgumentError(message);
  }
}
