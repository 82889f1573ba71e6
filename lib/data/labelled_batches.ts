/**
 * Labelled rows -> micro-batches for sequence classification. Rows are read and encoded once and kept (about 5 bytes a token);
 * nothing is padded: the sequences of a micro-batch lie one after the other, cuSeqlens tells them apart. The order of an epoch
 * is a pure function of seed and epoch.
 */
import { createHash } from 'node:crypto';
import { ArgumentError } from '../errors.ts';
import type { Tokenizer } from '../text/tokenizer.ts';
import { epochGroups } from './grouping.ts';
import { chooseFields, type FieldOptions, labelOptions } from './labelled_fields.ts';
import {
  type LabelOptions,
  type LabelScheme,
  parseLabel,
  readRaw,
  resolveScheme,
} from './labels.ts';
import { fieldText } from './prompt_template.ts';
import type { RowSource } from './rows.ts';

/** Sequences one after the other, each with its label. N tokens, B sequences, D labels. */
export interface LabelledBatch {
  readonly inputIds: Int32Array; // (N)
  /** Place of each token in its sequence. */
  readonly positions: Int32Array; // (N)
  /** First token of each sequence, and N. */
  readonly cuSeqlens: Int32Array; // (B+1)
  /** Which text of a pair each token belongs to. */
  readonly tokenTypeIds: Int32Array; // (N)
  /** Class ids (B); numbers or zeros and ones (B*D). */
  readonly labels: Int32Array | Float32Array;
  /** Index of each sequence's row in the data. */
  readonly indices: Int32Array; // (B)
}

/** How labelled rows become micro-batches. */
export interface LabelledOptions extends FieldOptions, LabelOptions {
  /** Tokens of a sequence, special ones included; the longer text of a pair is cut first. Default 512. */
  maxLength?: number;
  /** Examples of a micro-batch. Default 1. */
  batchSize?: number;
  /** Default true; false: the rows' own order in every epoch. */
  shuffle?: boolean;
  /** Default 42. */
  seed?: number;
  /**
   * Put sequences of like length into one micro-batch. Nothing is padded either way; it evens out what micro-batches take in
   * time and memory. Default false.
   */
  groupByLength?: boolean;
  /** What the user should know; the default drops it. */
  onWarning?: (warning: LabelledWarning) => void;
  signal?: AbortSignal;
}

/** What the user should know about the data; `code` is stable. */
export interface LabelledWarning {
  readonly code: 'examples_truncated' | 'classes_missing' | 'many_classes';
  readonly message: string;
}

/** What the data holds. */
export interface LabelledStatistics {
  readonly examples: number;
  /** Of one epoch, after cutting. */
  readonly tokens: number;
  readonly longest: number;
  readonly truncated: number;
  /** Examples of each class; null for regression. */
  readonly perClass: readonly number[] | null;
}

interface Encoded {
  readonly ids: Int32Array;
  readonly typeIds: Uint8Array;
}

/** Rows encoded between two looks at the event loop. */
const kRowsATurn = 64;
const kMaxLength = 512;
/** Classes that nobody named, above which more than one to every two examples looks like a text taken for the label. */
const kManyClasses = 20;

/** Unpadded micro-batches of labelled sequences, in an order that is a function of seed and epoch. */
export class LabelledBatches {
  #epoch: { epoch: number; groups: readonly Uint32Array[] } | null = null;

  private constructor(
    private readonly examples: readonly Encoded[],
    private readonly labels: readonly (readonly number[])[],
    private readonly settings: Settings,
    readonly scheme: LabelScheme,
    readonly statistics: LabelledStatistics,
    /** For people: which fields are used. */
    readonly format: string,
    /** Changes with the examples' ids and labels, their order and their batching. */
    readonly fingerprint: string,
  ) {}

  /**
   * Reads and encodes every row once.
   * @throws ArgumentError naming file, line and field of a text or label that is missing or wrong
   */
  static async create(
    rows: RowSource,
    tokenizer: Tokenizer,
    options: LabelledOptions = {},
  ): Promise<LabelledBatches> {
    const settings = checkedSettings(options);
    const first = await rows.row(0);
    const fields = await located(rows, 0, () => chooseFields(first, options));
    const examples: Encoded[] = [];
    const raw: unknown[] = [];
    let truncated = 0;
    for (let index = 0; index < rows.length; index++) {
      if (index % kRowsATurn === 0) {
        options.signal?.throwIfAborted();
        await new Promise((resolve) => setImmediate(resolve));
      }
      const row = await rows.row(index);
      const [a, b] = await located(rows, index, () => fields.texts.map((f) => fieldText(row, f)));
      const { ids, typeIds, cut } = tokenizer.encodePair(a as string, b ?? null, settings);
      if (ids.length === 0) throw await withoutTokens(rows, index, fields.texts);
      truncated += Number(cut > 0);
      examples.push({ ids: Int32Array.from(ids), typeIds: Uint8Array.from(typeIds) });
      raw.push(readRaw(row[fields.label]));
    }
    const scheme = resolveScheme(raw, labelOptions(options));
    const labels: number[][] = [];
    for (const [index, value] of raw.entries()) {
      labels.push(
        await located(rows, index, () => parseLabel(value, scheme), `field '${fields.label}': `),
      );
    }
    const statistics = count(examples, labels, { scheme, truncated });
    const format = `${fields.texts.join(' + ')} -> ${fields.label}`;
    tellWarnings(statistics, scheme, { ...options, format });
    const digest = digestOf(examples, labels, { settings, scheme });
    return new LabelledBatches(examples, labels, settings, scheme, statistics, format, digest);
  }

  /** Micro-batches of an epoch: the same for every one. */
  batchCount(_epoch = 0): number {
    return Math.ceil(this.examples.length / this.settings.batchSize);
  }

  /** The micro-batches of an epoch from index `start` on. */
  *batches(epoch = 0, start = 0): Generator<LabelledBatch> {
    for (const indices of this.#groups(epoch).slice(start)) yield this.collate(indices);
  }

  /** Examples by their row, as one micro-batch. */
  collate(indices: ArrayLike<number>): LabelledBatch {
    const rows = Int32Array.from(indices);
    const chosen = Array.from(rows, (row) => this.examples[row] as Encoded);
    const cuSeqlens = new Int32Array(rows.length + 1);
    chosen.forEach(({ ids }, b) => {
      cuSeqlens[b + 1] = (cuSeqlens[b] as number) + ids.length;
    });
    const tokens = cuSeqlens[rows.length] as number;
    const [inputIds, positions, tokenTypeIds] = [0, 0, 0].map(() => new Int32Array(tokens)) as [
      Int32Array,
      Int32Array,
      Int32Array,
    ];
    chosen.forEach(({ ids, typeIds }, b) => {
      const start = cuSeqlens[b] as number;
      inputIds.set(ids, start);
      tokenTypeIds.set(typeIds, start);
      for (let t = 0; t < ids.length; t++) positions[start + t] = t;
    });
    const values = Array.from(rows, (row) => this.labels[row] as readonly number[]).flat();
    const classes = this.scheme.problemType === 'single_label_classification';
    const labels = classes ? Int32Array.from(values) : Float32Array.from(values);
    return { inputIds, positions, cuSeqlens, tokenTypeIds, labels, indices: rows };
  }

  #groups(epoch: number): readonly Uint32Array[] {
    if (this.#epoch?.epoch !== epoch) {
      const { groupByLength: byLength, ...settings } = this.settings;
      const lengths = this.examples.map(({ ids }) => ids.length);
      this.#epoch = { epoch, groups: epochGroups(lengths, epoch, { ...settings, byLength }) };
    }
    return this.#epoch.groups;
  }
}

interface Settings {
  readonly batchSize: number;
  readonly maxLength: number;
  readonly shuffle: boolean;
  readonly seed: number;
  readonly groupByLength: boolean;
}

function count(
  examples: readonly Encoded[],
  labels: readonly (readonly number[])[],
  { scheme, truncated }: { scheme: LabelScheme; truncated: number },
): LabelledStatistics {
  const lengths = examples.map(({ ids }) => ids.length);
  const perClass = Array<number>(scheme.numLabels).fill(0);
  for (const label of labels) {
    if (scheme.problemType === 'single_label_classification') {
      perClass[label[0] as number] = (perClass[label[0] as number] as number) + 1;
    } else {
      label.forEach((value, d) => {
        perClass[d] = (perClass[d] as number) + value;
      });
    }
  }
  return {
    examples: examples.length,
    tokens: lengths.reduce((sum, length) => sum + length, 0),
    longest: lengths.reduce((most, length) => Math.max(most, length), 0),
    truncated,
    perClass: scheme.problemType === 'regression' ? null : perClass,
  };
}

function tellWarnings(
  { examples, truncated, perClass }: LabelledStatistics,
  { names }: LabelScheme,
  { maxLength = kMaxLength, labelNames, format, onWarning }: LabelledOptions & { format: string },
): void {
  if (truncated > 0) {
    const message = `${truncated} of ${examples} examples are cut to ${maxLength} tokens`;
    onWarning?.({ code: 'examples_truncated', message });
  }
  const found = (labelNames ?? null) === null ? (names?.length ?? 0) : 0;
  if (found > kManyClasses && found > examples / 2) {
    const message = `${examples} examples have ${found} different labels: are the fields right (${format})?`;
    onWarning?.({ code: 'many_classes', message });
  }
  const missing = (perClass ?? []).flatMap((n, d) => (n === 0 ? [names?.[d] ?? String(d)] : []));
  if (missing.length > 0) {
    const message = `no example has the label ${missing.join(', ')}`;
    onWarning?.({ code: 'classes_missing', message });
  }
}

function digestOf(
  examples: readonly Encoded[],
  labels: readonly (readonly number[])[],
  context: { settings: Settings; scheme: LabelScheme },
): string {
  const hash = createHash('sha256').update(JSON.stringify(context));
  examples.forEach(({ ids, typeIds }, i) => {
    hash.update(`${ids.length};`).update(ids).update(typeIds);
    hash.update(Float64Array.from(labels[i] as readonly number[]));
  });
  return hash.digest('hex');
}

function checkedSettings(options: LabelledOptions): Settings {
  const { batchSize = 1, maxLength = kMaxLength, seed = 42 } = options;
  for (const [name, value, least] of [
    ['batchSize', batchSize, 1],
    ['maxLength', maxLength, 2],
    ['seed', seed, 0],
  ] as const) {
    if (Number.isSafeInteger(value) && value >= least) continue;
    throw new ArgumentError(`data: ${name} must be an integer of at least ${least}, got ${value}`);
  }
  const { shuffle = true, groupByLength = false } = options;
  return { batchSize, maxLength, shuffle, seed, groupByLength };
}

/** A tokenizer that has no frame makes nothing of an empty text, and no head reads a sequence without tokens. */
async function withoutTokens(
  rows: RowSource,
  index: number,
  texts: readonly string[],
): Promise<ArgumentError> {
  const names = texts.map((name) => `'${name}'`).join(', ');
  return new ArgumentError(
    `${await rows.where(index)}: field ${names}: no token, and the tokenizer adds none of its own`,
  );
}

/** Puts the row's place on an error about its contents. */
async function located<T>(rows: RowSource, index: number, work: () => T, prefix = ''): Promise<T> {
  try {
    return work();
  } catch (error) {
    if (!(error instanceof ArgumentError)) throw error;
    throw new ArgumentError(`${await rows.where(index)}: ${prefix}${error.message}`);
  }
}
