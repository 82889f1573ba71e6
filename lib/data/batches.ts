/** Micro-batches of encoded examples for a causal language model: rows -> examples -> micro-batches, see `Dataset`. */
import { ArgumentError } from '../errors.ts';
import { type CallTable, kCall, oneOf, wholeNumber } from '../options/call.ts';
import type { Tokenizer } from '../text/tokenizer.ts';
import { type Batch, collate } from './collate.ts';
import { type CorruptionCounts, corruptRows, reportCorruption } from './corruption.ts';
import { DATA_DEFAULTS } from './data_options.ts';
import {
  checkData,
  Dataset,
  type DatasetOptions,
  type DataWarning,
  datasetTable,
  type ExampleKind,
  type GivenRows,
  orderOptions,
  truncationWarning,
} from './dataset.ts';
import { EmptyAnswers } from './empty_answers.ts';
import { StreamedBatches } from './encoded_batches.ts';
import { type Example, supervisedCount, truncate } from './example.ts';
import {
  chooseFormats,
  describeFormats,
  type FormatOptions,
  formatTable,
} from './example_format.ts';
import { choiceOf } from './mixed_rows.ts';
import type { RowSource } from './rows.ts';

/** Options for turning rows into micro-batches. */
export interface BatchOptions extends FormatOptions, DatasetOptions {
  /** Number of examples (rows, when packing) in a micro-batch. Default 1; that of `balora train` is 8. */
  batchSize?: number;
  /** Largest number of tokens in an example; longer ones are cut. Default 512. */
  maxLength?: number;
  /** Whether to put several examples into each row of `maxLength` tokens. Default false. */
  packing?: boolean;
  /** Padding of a micro-batch's rows. Default `none`: rows are not padded. */
  padding?: 'none' | 'longest';
  /** Action for an example without any supervised token (all cut off): leave it out with a warning, or fail. Default skip. */
  onUnsupervised?: 'skip' | 'error';
  /** Called with each warning for the user; by default warnings are dropped. */
  onWarning?: (warning: DataWarning) => void;
}

/** The kinds of the options. */
const kTable: CallTable<BatchOptions> = {
  ...formatTable,
  ...datasetTable,
  maxLength: wholeNumber({ least: 2 }),
  packing: kCall.boolean,
  padding: oneOf(['none', 'longest']),
  onUnsupervised: oneOf(['skip', 'error']),
  onWarning: kCall.function,
};

/** Counts of the data over one epoch. */
export interface DataStatistics {
  /** Number of rows read. */
  readonly rows: number;
  /** Number of rows that are trained on. */
  readonly examples: number;
  readonly skipped: number;
  readonly truncated: number;
  /** Number of tokens in one epoch, after cutting. */
  readonly tokens: number;
  readonly supervisedTokens: number;
  readonly longest: number;
  /** Counts of what was corrupted on purpose, where it was asked for. */
  readonly corruption?: CorruptionCounts;
}

/** Micro-batches of encoded examples; the trainer's usual data source. */
export class Batches extends StreamedBatches<Example, Batch, DataStatistics> {
  /**
   * Reads and encodes every row once.
   * @throws ArgumentError for an option of another type or out of range, a row without the fields (naming it), or when no example
   *   has a supervised token
   * @throws FormatError for damaged data
   */
  static async create(
    rowsOrSource: GivenRows,
    tokenizer: Tokenizer,
    options: BatchOptions = {},
  ): Promise<Batches> {
    const given = checkData({ rows: rowsOrSource, tokenizer }, options, kTable);
    const settings = settingsOf(options);
    const { maxLength, packing, padding } = settings;
    const formats = await chooseFormats(given, tokenizer, options);
    const columns = formats.map(({ columns: texts }) => ({ texts }));
    const rows = await corruptRows(given, columns, options);
    const check = new SupervisionCheck(rows, maxLength, options);
    const padId = tokenizer.padId ?? tokenizer.eosId ?? 0;
    const kind: ExampleKind<Example, Batch> = {
      encode: (row, index) => {
        const whole = choiceOf(formats, rows, index).encode(row);
        return { example: truncate(whole, maxLength), cut: [whole.ids.length > maxLength] };
      },
      length: ({ ids }) => ids.length,
      isPadded: padding === 'longest',
      bytes: ({ ids, supervised }) => ids.byteLength + supervised.byteLength,
      digest: ({ ids, supervised }, hash) => {
        hash.update(`${ids.length};`).update(ids).update(supervised);
      },
      collate: (examples, indices) => collate(examples, { padding, padId, indices }),
    };
    const dataset = await Dataset.read(rows, kind, {
      ...options,
      tokenizer,
      order: { ...settings, packInto: packing ? maxLength : undefined },
      keep: (example, index) => check.keep(example, index),
    });
    const { truncated, truncatedSides: _, ...counts } = dataset.counts;
    const skipped = counts.rows - counts.examples;
    await check.report(skipped);
    // Examples that are left out were cut as well, and have a warning of their own.
    if (truncated > skipped) {
      const about = { rows: counts.rows, what: 'examples', maxLength };
      options.onWarning?.(truncationWarning(truncated, about));
    }
    const statistics = {
      ...counts,
      skipped,
      truncated,
      supervisedTokens: check.supervisedTokens,
      corruption: reportCorruption(rows, options),
    };
    const format = describeFormats(formats);
    return new Batches(
      { dataset, format, tokenizer, options: { ...options, ...settings } },
      { statistics, settings },
    );
  }
}

/** Finds the examples that have nothing to learn, and counts the supervised tokens of the others. */
class SupervisionCheck {
  supervisedTokens = 0;
  /** The first row that is left out because of its length. */
  private first: number | null = null;
  /** The first row whose answers are all masked, and the number of such rows. */
  private firstMasked: number | null = null;
  private maskedRows = 0;
  private readonly empty = new EmptyAnswers();
  /** Number of rows that are left out because all their answers are empty. */
  private emptyRows = 0;

  constructor(
    private readonly rows: RowSource,
    private readonly maxLength: number,
    private readonly options: BatchOptions,
  ) {}

  /** Whether an example has a supervised token. @throws ArgumentError if it has none and the options say so */
  async keep(example: Example, index: number): Promise<boolean> {
    const supervised = supervisedCount(example);
    this.supervisedTokens += supervised;
    const { emptyAnswers = 0, isMasked = false } = example;
    if (emptyAnswers > 0) this.empty.add(index, emptyAnswers);
    if (supervised > 0) return true;
    if (isMasked) {
      this.maskedRows++;
      this.firstMasked ??= index;
    } else if (emptyAnswers > 0) this.emptyRows++;
    else this.first ??= index;
    if (this.options.onUnsupervised === 'error') throw await this.error();
    return false;
  }

  /** Warns about the examples that are left out. @throws ArgumentError if nothing remains */
  async report(skipped: number): Promise<void> {
    const { length } = this.rows;
    if (skipped === length) throw await this.error(`, nor in any of the ${length} rows`);
    await this.empty.report(this.rows, this.options);
    if (this.firstMasked !== null) {
      const where = await this.rows.where(this.firstMasked);
      const message = `${this.maskedRows} of ${length} examples have no message that is trained on and are left out (first: ${where})`;
      this.options.onWarning?.({ code: 'examples_masked', message });
    }
    if (this.first === null) return;
    const where = await this.rows.where(this.first);
    const count = skipped - this.emptyRows - this.maskedRows;
    const message = `${count} of ${length} examples have no supervised token within ${this.maxLength} tokens and are left out (first: ${where}); raise maxLength to train on them`;
    this.options.onWarning?.({ code: 'examples_skipped', message });
  }

  /** The error for the first row that is left out. */
  private async error(others = ''): Promise<ArgumentError> {
    const { first, firstMasked, rows } = this;
    if (first !== null) {
      return new ArgumentError(
        `${await rows.where(first)}: no supervised token within ${this.maxLength} tokens${others}; raise maxLength or shorten the prompt`,
      );
    }
    if (firstMasked === null) return this.empty.error(rows);
    return new ArgumentError(
      `${await rows.where(firstMasked)}: no message of the row is trained on; mark one with train: true, or remove the row`,
    );
  }
}

function settingsOf(options: BatchOptions) {
  const { maxLength = DATA_DEFAULTS.maxLength, packing = false, padding = 'none' } = options;
  const { batchSize, shuffle, seed } = orderOptions(options);
  if (packing && padding !== 'none') {
    throw new ArgumentError(
      "data: packing: true and padding: 'longest' exclude each other; leave one of them out",
    );
  }
  // The fingerprint hashes the fields in this order.
  return { batchSize, maxLength, packing, padding, shuffle, seed };
}
