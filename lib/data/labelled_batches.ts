/**
 * Micro-batches of labelled texts for sequence classification, see `Dataset`. Encoded texts are all kept in memory (about 5 bytes
 * per token); nothing is padded: the sequences of a micro-batch are concatenated, and cuSeqlens holds their borders.
 */
import { createHash } from 'node:crypto';
import { ArgumentError } from '../errors.ts';
import { type CallTable, kCall, wholeNumber } from '../options/call.ts';
import { labelTable } from '../options/labels.ts';
import { printable } from '../shown.ts';
import type { Tokenizer } from '../text/tokenizer.ts';
import { concatenate, type Segments } from './collate.ts';
import { type CorruptionCounts, corruptRows, reportCorruption } from './corruption.ts';
import { DATA_DEFAULTS } from './data_options.ts';
import {
  checkData,
  Dataset,
  type DatasetOptions,
  type DataWarning,
  datasetTable,
  type ExampleKind,
  forEachRow,
  type GivenRows,
  orderOptions,
  truncationWarning,
} from './dataset.ts';
import { type Encoded, EncodedBatches } from './encoded_batches.ts';
import { describeFormats, perFile } from './example_format.ts';
import {
  chooseFields,
  type FieldOptions,
  type Fields,
  fieldTable,
  labelOptions,
} from './labelled_fields.ts';
import {
  type LabelOptions,
  type LabelScheme,
  parseLabel,
  rawLabel,
  resolveScheme,
} from './labels.ts';
import { choiceOf } from './mixed_rows.ts';
import { fieldText } from './prompt_template.ts';
import type { RowSource } from './rows.ts';

/** Concatenated sequences, each with its label. N tokens, B sequences, D labels. */
export interface LabelledBatch extends Segments {
  /** Index of the text of a pair that each token belongs to. */
  readonly tokenTypeIds: Int32Array; // (N)
  /** Labels: class ids (B), or numbers or zeros and ones (B*D). */
  readonly labels: Int32Array | Float32Array;
  /** Index of each sequence's row in the data. */
  readonly indices: Int32Array; // (B)
}

/** Options for turning labelled rows into micro-batches. */
export interface LabelledOptions
  extends FieldOptions,
    LabelOptions,
    Omit<DatasetOptions, 'cacheBytes'> {
  /** Largest number of tokens in a sequence, special ones included; the longer text of a pair is cut first. Default 512. */
  maxLength?: number;
  /**
   * Whether sequences of similar length share a micro-batch. Nothing is padded either way; it evens out the time and memory that
   * micro-batches take. Default false.
   */
  groupByLength?: boolean;
  /** Called with each warning for the user; by default warnings are dropped. */
  onWarning?: (warning: LabelledWarning) => void;
}

const { cacheBytes: _, ...kDatasetTable } = datasetTable;
/** The kinds of the options. */
const kTable: CallTable<LabelledOptions> = {
  ...fieldTable,
  ...labelTable,
  ...kDatasetTable,
  maxLength: wholeNumber({ least: 2 }),
  groupByLength: kCall.boolean,
  onWarning: kCall.function,
};

/** A warning about the data for the user; `code` is stable. */
export interface LabelledWarning {
  readonly code: DataWarning['code'] | 'classes_missing' | 'many_classes';
  readonly message: string;
}

/** Counts over the labelled data. */
export interface LabelledStatistics {
  readonly examples: number;
  /** Number of tokens in one epoch, after cutting. */
  readonly tokens: number;
  readonly longest: number;
  readonly truncated: number;
  /** Number of examples of each class; null for regression. */
  readonly perClass: readonly number[] | null;
  /** Counts of what was corrupted on purpose, where it was asked for. */
  readonly corruption?: CorruptionCounts;
}

interface Labelled {
  readonly ids: Int32Array;
  readonly typeIds: Uint8Array;
  readonly label: readonly number[];
}

/** Number of classes without given names above which more than one per two examples suggests that a text was read as the label. */
const kManyClasses = 20;

/** Unpadded micro-batches of labelled sequences, in an order that is a function of seed and epoch. */
export class LabelledBatches extends EncodedBatches<Labelled, LabelledBatch> {
  private constructor(
    encoded: Encoded<Labelled, LabelledBatch>,
    readonly scheme: LabelScheme,
    readonly statistics: LabelledStatistics,
  ) {
    super(encoded);
  }

  /**
   * Reads every row twice: for its label, since all labels together decide what they mean, and then to encode it.
   * @throws ArgumentError naming file, line and field of a text or label that is missing or wrong
   */
  static async create(
    rowsOrSource: GivenRows,
    tokenizer: Tokenizer,
    options: LabelledOptions = {},
  ): Promise<LabelledBatches> {
    const given = checkData({ rows: rowsOrSource, tokenizer }, options, kTable);
    const settings = settingsOf(options);
    const { maxLength, groupByLength: byLength } = settings;
    const fields = await perFile(given, (row) => chooseFields(row, options));
    // A maxLength that leaves no room for a text is refused before all rows are read.
    const hasPairs = fields.some(({ texts }) => texts.length > 1);
    tokenizer.encodePair('', hasPairs ? '' : null, { maxLength });
    const rows = await corruptRows(given, fields, options);
    const scheme = await schemeOf(rows, fields, options);
    const perClass = Array<number>(scheme.numLabels).fill(0);
    const classes = scheme.problemType === 'single_label_classification';
    const kind: ExampleKind<Labelled, LabelledBatch> = {
      encode: (row, index) => {
        const { texts, label: labelField } = choiceOf(fields, rows, index);
        const [a = '', b = null] = texts.map((field) => fieldText(row, field));
        const { ids, typeIds, cut } = tokenizer.encodePair(a, b, { maxLength });
        if (ids.length === 0) throw withoutTokens(texts);
        const label = labelOf(row[labelField], labelField, scheme);
        const example = { ids: Int32Array.from(ids), typeIds: Uint8Array.from(typeIds), label };
        return { example, cut: [cut > 0] };
      },
      length: ({ ids }) => ids.length,
      bytes: ({ ids, typeIds, label }) => ids.byteLength + typeIds.byteLength + 8 * label.length,
      digest: ({ ids, typeIds, label }, hash) => {
        hash.update(`${ids.length};`).update(ids).update(typeIds).update(Float64Array.from(label));
      },
      collate: (examples, indices) => {
        const segments = concatenate(examples.map(({ ids }) => ids));
        const tokenTypeIds = new Int32Array(segments.inputIds.length);
        examples.forEach(({ typeIds }, b) => {
          tokenTypeIds.set(typeIds, segments.cuSeqlens[b]);
        });
        const values = examples.flatMap(({ label }) => label);
        const labels = classes ? Int32Array.from(values) : Float32Array.from(values);
        return { ...segments, tokenTypeIds, labels, indices: Int32Array.from(indices) };
      },
    };
    const dataset = await Dataset.read(rows, kind, {
      ...options,
      tokenizer,
      order: { ...settings, byLength },
      cacheBytes: Number.POSITIVE_INFINITY,
      // Fingerprints that runs have stored depend on this order: settings and scheme are hashed before the examples.
      hash: createHash('sha256').update(JSON.stringify({ settings, scheme })),
      keep: ({ label }) => {
        for (const [d, value] of classes ? [[label[0] as number, 1] as const] : label.entries()) {
          perClass[d] = (perClass[d] as number) + value;
        }
        return true;
      },
    });
    const { examples, tokens, longest, truncated } = dataset.counts;
    const statistics = {
      examples,
      tokens,
      longest,
      truncated,
      perClass: scheme.problemType === 'regression' ? null : perClass,
      corruption: reportCorruption(rows, options),
    };
    const format = describeFormats(fields);
    reportWarnings(statistics, scheme, { ...options, format });
    return new LabelledBatches(
      { dataset, format, tokenizer, options: { ...options, ...settings } },
      scheme,
      statistics,
    );
  }

  /** A string that changes with the examples' ids and labels, their order and their batching. */
  get fingerprint(): string {
    return this.dataset.digest.toString('hex');
  }

  /** The micro-batches of an epoch from index `start` on. */
  *batches(epoch = 0, start = 0): Generator<LabelledBatch> {
    for (const indices of this.dataset.groups(epoch, start)) yield this.collate(indices);
  }

  /** Collates examples by their rows into one micro-batch. */
  collate(indices: ArrayLike<number>): LabelledBatch {
    return this.dataset.collateKept(Uint32Array.from(indices));
  }
}

/** The meaning of the labels, resolved from the options and all rows. */
async function schemeOf(
  rows: RowSource,
  fields: readonly Fields[],
  { onProgress: _, ...options }: LabelledOptions,
): Promise<LabelScheme> {
  const raw: unknown[] = [];
  await forEachRow(rows, options, async (index) => {
    raw.push(rawLabel((await rows.row(index))[choiceOf(fields, rows, index).label]));
  });
  return resolveScheme(raw, labelOptions(options));
}

function labelOf(value: unknown, field: string, scheme: LabelScheme): number[] {
  try {
    return parseLabel(rawLabel(value), scheme);
  } catch (error) {
    if (!(error instanceof ArgumentError)) throw error;
    throw new ArgumentError(`field '${field}': ${error.message}`);
  }
}

function reportWarnings(
  { examples, truncated, perClass }: LabelledStatistics,
  { names }: LabelScheme,
  {
    maxLength = DATA_DEFAULTS.maxLength,
    labelNames,
    format,
    onWarning,
  }: LabelledOptions & { format: string },
): void {
  if (truncated > 0) {
    onWarning?.(truncationWarning(truncated, { rows: examples, what: 'examples', maxLength }));
  }
  const found = (labelNames ?? null) === null ? (names?.length ?? 0) : 0;
  if (found > kManyClasses && found > examples / 2) {
    const message = `${examples} examples have ${found} different labels; check that the fields are right (${format})`;
    onWarning?.({ code: 'many_classes', message });
  }
  const missing = (perClass ?? []).flatMap((n, d) => (n === 0 ? [names?.[d] ?? String(d)] : []));
  if (missing.length > 0) {
    const message = `no example has the label ${missing.map((name) => printable(name)).join(', ')}`;
    onWarning?.({ code: 'classes_missing', message });
  }
}

function settingsOf(options: LabelledOptions) {
  const { maxLength = DATA_DEFAULTS.maxLength, groupByLength = false } = options;
  const { batchSize, shuffle, seed } = orderOptions(options);
  // The fingerprint hashes the fields in this order.
  return { batchSize, maxLength, shuffle, seed, groupByLength };
}

/** The error for an empty text under a tokenizer without special tokens: it has no tokens, and no head reads such a sequence. */
function withoutTokens(texts: readonly string[]): ArgumentError {
  const names = texts.map((name) => `'${name}'`).join(', ');
  return new ArgumentError(
    `field ${names}: the text has no token, and the tokenizer adds none of its own; fill it in, or remove the row`,
  );
}
