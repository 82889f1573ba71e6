/** The parts that all calibrations share: passes over the first micro-batches, the rows of these that count, and statistics by module. */
import { withAbort } from '../abort.ts';
import type { CalibrationFacts } from '../adapters/calibration.ts';
import type { StartModule, Statistics } from '../adapters/methods/method.ts';
import type { Batch, Segments } from '../data/collate.ts';
import type { LabelledBatch } from '../data/labelled_batches.ts';
import { selectRows } from '../data/select_rows.ts';
import type { Seq2SeqExamples } from '../data/seq2seq_example.ts';
import { NativeError } from '../errors.ts';
import { modelBatch } from '../eval/classify.ts';
import { CausalLM, type Model, Seq2SeqLM, SequenceClassifier } from '../models/index.ts';
import type { Linear } from '../nn/linear.ts';
import { copy_, zeros } from '../ops/index.ts';
import { synchronize, yieldToEventLoop } from '../runtime.ts';
import { computeOwned, noGrad, scope, type Tensor } from '../tensor.ts';
import type { CalibrationState } from './calibration_state.ts';
import { type FoundBy, placed } from './failure.ts';

/** A module to be calibrated. */
export interface CalibratedLinear extends StartModule {
  readonly linear: Linear;
}

/** Passes over the data: what is read, how much of it, and how the caller hears of it. */
export interface Pass {
  readonly model: Model;
  readonly modules: readonly CalibratedLinear[];
  /** The micro-batches from an index on. */
  batches(start: number): AsyncIterable<AnyBatch> | Iterable<AnyBatch>;
  readonly count: number;
  readonly settings: CalibrationFacts['settings'];
  readonly maxBytes: number;
  readonly onProgress: (done: number, total: number) => void;
  readonly state: CalibrationState;
  /** Aborts the ops of a micro-batch that does not end soon after the calibration is stopped. */
  readonly abort: AbortSignal | undefined;
}

/** A micro-batch of any task. */
export type AnyBatch = Batch | LabelledBatch | Seq2SeqExamples;

/** Statistics by module, and the module of a group with the same input that has them. */
export interface Found {
  readonly statistics: ReadonlyMap<string, Statistics>;
  readonly inputOf: ReadonlyMap<string, string>;
}

/** The micro-batches of one pass over the data from an index on. */
export async function* batchesOf(
  { batches, count }: Pick<Pass, 'batches' | 'count'>,
  start: number,
) {
  let left = count - start;
  if (left <= 0) return;
  for await (const batch of batches(start)) {
    yield batch;
    if (--left === 0) return;
  }
}

/** The error for a micro-batch of a calibration in which something is not finite. */
export function notFiniteIn(batch: number, what: string, found?: FoundBy): NativeError {
  return new NativeError(`calibrate: micro-batch ${batch + 1}: not finite (${what})`, {
    code: 'ERR_NOT_FINITE',
    advice:
      'nothing is trained here, so that it is the weights, or activations that overflow in their dtype: load the model in dtype f32, or ' +
      'find the first such value with setAnomalyMode(true)',
    ...found,
  });
}

/** Runs the work on a micro-batch, whose errors about values that are not finite say in which it was. */
export async function inBatch<T>(batch: number, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    throw placed(error, (what, found) => notFiniteIn(batch, what, found));
  }
}

/**
 * Lets the engine and the event loop catch up after a micro-batch.
 * @throws the signal's reason where the micro-batch was aborted
 */
export async function settle(abort: AbortSignal | undefined): Promise<void> {
  await synchronize();
  abort?.throwIfAborted();
  await yieldToEventLoop();
}

/** Runs a forward of a micro-batch without recording; a classifier's with its head. */
export function forward(model: Model, batch: AnyBatch, abort?: AbortSignal): void {
  // Rows that several sequences share must be seen for each of them.
  const whole = { sharePrefixes: false };
  const run = (): void => {
    if (!(model instanceof SequenceClassifier)) return void model.forward(batch, whole);
    const rows = modelBatch(model, batch as LabelledBatch);
    model.logits(model.forward(rows, whole), rows);
  };
  scope(() => noGrad(() => withAbort(abort, run)));
}

/**
 * The kind of rows that a module reads: the tokens of an encoder-decoder's targets, those of its sources or of the only texts, or whole
 * sequences, as in a classifier's head.
 */
export type Side = 'source' | 'target' | 'sequence';

type Rows = Segments & { readonly lengths?: Int32Array | undefined };

/** The rows of a batch that are no padding, by sequence. */
export interface RealRows {
  /** Indices of the rows; null: all. */
  readonly rows: Int32Array | null;
  /** Number of rows of each sequence, none of them 0. */
  readonly lengths: readonly number[];
}

/** The sequence of each of the real rows. */
export function sequencesOf({ lengths }: RealRows): Int32Array {
  const sequences = new Int32Array(lengths.reduce((sum, n) => sum + n, 0));
  let start = 0;
  for (const [b, length] of lengths.entries()) {
    sequences.fill(b, start, start + length);
    start += length;
  }
  return sequences;
}

/** The rows of one side that are no padding. */
export function realRows(batch: AnyBatch, side: Side): RealRows {
  const rows: Rows = side === 'target' ? (batch as Seq2SeqExamples).decoder : batch;
  const { cuSeqlens, lengths } = rows;
  const count = cuSeqlens.length - 1;
  if (side === 'sequence') return { rows: null, lengths: new Array<number>(count).fill(1) };
  const segments = Array.from({ length: count }, (_, b) => {
    const [begin, end] = [cuSeqlens[b] as number, cuSeqlens[b + 1] as number];
    return { begin, length: lengths === undefined ? end - begin : (lengths[b] as number) };
  }).filter(({ length }) => length > 0);
  const own = segments.map(({ length }) => length);
  if (lengths === undefined) return { rows: null, lengths: own };
  const real = segments.flatMap(({ begin, length }) => Array.from({ length }, (_, t) => begin + t));
  return { rows: Int32Array.from(real), lengths: own };
}

/**
 * The rows of one side whose tokens a start learns from: of a language model those whose own id is trained on, that is, predicted by the
 * row before; of a decoder with an encoder those that predict a supervised id; of texts without targets all that are no padding.
 */
export function learntRows(model: Model, batch: AnyBatch, side: Side): Int32Array {
  if (model instanceof CausalLM || side === 'target') {
    const own = side === 'target' ? (batch as Seq2SeqExamples).decoder : (batch as Batch);
    const labels = side === 'target' ? { labels: own.targets } : {};
    const { rows, regularizedRows } = selectRows({ ...own, ...labels }, 'label_aligned');
    return regularizedRows.map((index) => rows[index] as number);
  }
  const { rows, lengths } = realRows(batch, side);
  if (rows !== null) return rows;
  return Int32Array.from({ length: lengths.reduce((sum, n) => sum + n, 0) }, (_, n) => n);
}

/** A forward in which the sides differ in their numbers of rows, so that the modules show which they read. */
export function probe(model: Model): {
  readonly sides: ReadonlyMap<number, Side>;
  readonly run: () => void;
} {
  const pairs = model instanceof Seq2SeqLM;
  const [batch] = model.probeBatches(pairs ? 3 : 2);
  const rows = batch as AnyBatch & { readonly decoder?: Rows };
  const sides = new Map<number, Side>([[rows.inputIds.length, 'source']]);
  if (rows.decoder !== undefined) sides.set(rows.decoder.inputIds.length, 'target');
  else if (model instanceof SequenceClassifier) sides.set(1, 'sequence');
  return { sides, run: () => forward(model, rows) };
}

/** Splits a list into consecutive parts whose sizes add up to no more than a limit, one entry each at least. */
export function partsWithin<T>(
  entries: readonly T[],
  bytesOf: (entry: T) => number,
  limit: number,
): T[][] {
  const parts: T[][] = [];
  let room = 0;
  for (const entry of entries) {
    const bytes = bytesOf(entry);
    if (bytes > room) {
      parts.push([]);
      room = limit;
    }
    parts.at(-1)?.push(entry);
    room -= bytes;
  }
  return parts;
}

/** Number of modules whose statistics are reduced at once: enough for all threads. */
const kReduced = 16;

/** Bytes of weights in f64 that are reduced at once, unless a single one is larger. */
const kReducedBytes = 2 ** 29;

/** Reduces the statistics of modules, some at a time, to tensors of their own. */
export async function reducedOf<S>(
  sources: readonly { readonly module: CalibratedLinear; readonly source: S }[],
  reduce: (modules: readonly CalibratedLinear[], sources: readonly S[]) => readonly Statistics[],
  abort: AbortSignal | undefined,
): Promise<Map<string, Statistics>> {
  const result = new Map<string, Statistics>();
  const bytesOf = ({ module }: (typeof sources)[number]): number =>
    Math.max(8 * module.weight.size, kReducedBytes / kReduced);
  for (const some of partsWithin(sources, bytesOf, kReducedBytes)) {
    const [own, its] = [some.map(({ module }) => module), some.map(({ source }) => source)];
    const found = computeOwned(() => withAbort(abort, () => reduce(own, its).map(ownCopies)));
    for (const [i, { module }] of some.entries()) result.set(module.name, found[i] as Statistics);
    await settle(abort);
  }
  return result;
}

/** Copies in f32, which keep nothing larger in memory as views would. */
export function ownCopies(statistics: Statistics): Statistics {
  return Object.fromEntries(
    Object.entries(statistics).map(([name, value]) => {
      const own = zeros(value.shape, { device: value.device });
      copy_(own, value.to('f32'));
      return [name, own];
    }),
  );
}

/** Statistics as tensors by name, for the file of a calibration that was cut off; {@link statisticsIn} is the inverse. */
export function tensorsOf(statistics: ReadonlyMap<string, Statistics>): Record<string, Tensor> {
  return Object.fromEntries(
    [...statistics].flatMap(([module, own]) =>
      Object.entries(own).map(([name, value]) => [`done|${module}|${name}`, value] as const),
    ),
  );
}

/** The statistics among tensors by name. */
export function statisticsIn(tensors: Readonly<Record<string, Tensor>>): Map<string, Statistics> {
  const found = new Map<string, Record<string, Tensor>>();
  for (const [key, value] of Object.entries(tensors)) {
    const [kind, module = '', name = ''] = key.split('|');
    if (kind !== 'done') continue;
    found.set(module, { ...found.get(module), [name]: value });
  }
  return found;
}
