/** Micro-batches for an encoder-decoder, see `Dataset`: the prompt is the source, the response the target. */
import { type CallTable, checkArgument, kCall, wholeNumber } from '../options/call.ts';
import type { Tokenizer } from '../text/tokenizer.ts';
import type { DataStatistics } from './batches.ts';
import { corruptRows, reportCorruption } from './corruption.ts';
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
import {
  chooseSourceTargets,
  describeFormats,
  type FormatOptions,
  formatTable,
} from './example_format.ts';
import { choiceOf } from './mixed_rows.ts';
import {
  collateSeq2Seq,
  encodeSeq2Seq,
  type Seq2SeqExample,
  type Seq2SeqExamples,
} from './seq2seq_example.ts';

/** Options for turning rows into micro-batches of an encoder-decoder. */
export interface Seq2SeqBatchOptions extends FormatOptions, DatasetOptions {
  /** The id that the decoder reads first: `decoderStartTokenId` of the model. */
  decoderStartTokenId: number;
  /** A template with {field} places, or the name of one. Default: none, the prompt is the source as it stands. */
  promptTemplate?: string;
  /** Largest number of tokens in a source, special ones included; longer ones are cut before `</s>`. Default 512. */
  maxSourceLength?: number;
  /** Largest number of tokens in a target, special ones included; longer ones are cut before `</s>`. Default 128. */
  maxTargetLength?: number;
  /** Called with each warning for the user; by default warnings are dropped. */
  onWarning?: (warning: DataWarning) => void;
}

/** The kinds of the options. */
const kTable: CallTable<Seq2SeqBatchOptions> = {
  ...formatTable,
  ...datasetTable,
  decoderStartTokenId: wholeNumber({ least: 0 }),
  maxSourceLength: wholeNumber({ least: 2 }),
  maxTargetLength: wholeNumber({ least: 2 }),
  onWarning: kCall.function,
};

/** Counts over one epoch. Tokens are those of both sides; no example is ever left out, since each has an end to learn. */
export interface Seq2SeqStatistics extends DataStatistics {
  /** Number of rows of the longest sequence on either side: the length that a position table must have. */
  readonly longest: number;
  readonly longestSource: number;
  readonly longestTarget: number;
  readonly truncatedSources: number;
  readonly truncatedTargets: number;
}

/** Unpadded micro-batches of sources and targets, in an order that is a function of seed and epoch. */
export class Seq2SeqBatches extends StreamedBatches<
  Seq2SeqExample,
  Seq2SeqExamples,
  Seq2SeqStatistics
> {
  /**
   * Reads and encodes every row once.
   * @throws ArgumentError for a row without the fields (naming it), a tokenizer without EOS, or options that are wrong
   * @throws FormatError for damaged data
   */
  static async create(
    rowsOrSource: GivenRows,
    tokenizer: Tokenizer,
    options: Seq2SeqBatchOptions,
  ): Promise<Seq2SeqBatches> {
    const given = checkData({ rows: rowsOrSource, tokenizer }, options, kTable);
    const settings = settingsOf(options);
    const { decoderStartTokenId, maxSourceLength, maxTargetLength } = settings;
    const lengths = { maxSourceLength, maxTargetLength };
    // Settings under which no row could be encoded are refused before any row is read.
    encodeSeq2Seq(tokenizer, ['', ''], lengths);
    const formats = await chooseSourceTargets(given, options);
    const columns = formats.map(({ columns: texts }) => ({ texts }));
    const rows = await corruptRows(given, columns, options);
    let [longestSource, longestTarget, supervisedTokens] = [0, 0, 0];
    const empty = new EmptyAnswers();
    const kind: ExampleKind<Seq2SeqExample, Seq2SeqExamples> = {
      encode: (row, index) =>
        encodeSeq2Seq(tokenizer, choiceOf(formats, rows, index).texts(row), lengths),
      length: ({ source, target }) => source.length + target.length,
      bytes: ({ source, target }) => source.byteLength + target.byteLength,
      digest: ({ source, target }, hash) => {
        hash.update(`${source.length},${target.length};`).update(source).update(target);
      },
      collate: (examples, indices) => collateSeq2Seq(examples, { decoderStartTokenId, indices }),
    };
    const dataset = await Dataset.read(rows, kind, {
      ...options,
      tokenizer,
      order: settings,
      keep: ({ source, target }, index) => {
        // A target of its end alone.
        if (target.length <= 1) {
          empty.add(index);
          return false;
        }
        longestSource = Math.max(longestSource, source.length);
        longestTarget = Math.max(longestTarget, target.length);
        supervisedTokens += target.length;
        return true;
      },
    });
    const { truncatedSides, ...counts } = dataset.counts;
    if (counts.examples === 0) throw await empty.error(rows);
    await empty.report(rows, options);
    const [truncatedSources = 0, truncatedTargets = 0] = truncatedSides;
    const statistics = {
      ...counts,
      skipped: counts.rows - counts.examples,
      supervisedTokens,
      longest: Math.max(longestSource, longestTarget),
      longestSource,
      longestTarget,
      truncatedSources,
      truncatedTargets,
      corruption: reportCorruption(rows, options),
    };
    const sides = [
      ['sources', truncatedSources, maxSourceLength],
      ['targets', truncatedTargets, maxTargetLength],
    ] as const;
    for (const [what, truncated, maxLength] of sides) {
      const about = { rows: counts.rows, what, maxLength };
      if (truncated > 0) options.onWarning?.(truncationWarning(truncated, about));
    }
    const format = describeFormats(formats);
    return new Seq2SeqBatches(
      { dataset, format, tokenizer, options: { ...options, ...settings } },
      { statistics, settings },
    );
  }
}

function settingsOf(options: Seq2SeqBatchOptions) {
  const {
    decoderStartTokenId,
    maxSourceLength = DATA_DEFAULTS.maxSourceLength,
    maxTargetLength = DATA_DEFAULTS.maxTargetLength,
  } = options;
  checkArgument('data: decoderStartTokenId', kTable.decoderStartTokenId, decoderStartTokenId);
  const { batchSize, shuffle, seed } = orderOptions(options);
  return { decoderStartTokenId, batchSize, maxSourceLength, maxTargetLength, shuffle, seed };
}
