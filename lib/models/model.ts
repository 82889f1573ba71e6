/**
 * Base class of all models, whatever their task: hidden states from a batch of unpadded rows. Heads are apart from them
 * (see causal_lm.ts, sequence_classifier.ts), so that a loss may run a head in chunks or on chosen rows only.
 */
import { withDevice } from '../device.ts';
import { ArgumentError } from '../errors.ts';
import type { FileIdentity } from '../io/index.ts';
import type { OffloadedBase } from '../io/offload.ts';
import { Module } from '../nn/index.ts';
import { checkKeys } from '../options/call.ts';
import { type DType, keep, scope, type Tensor, tensor } from '../tensor.ts';
import type { ModelBatch } from './batch.ts';
import type { CachedLayer, CachePass } from './kv_cache.ts';
import type { LayerKeep } from './layers.ts';
import { sharedRows } from './shared_rows.ts';

/** Where a model came from and how it is kept. */
export interface ModelOrigin {
  /** The argument of fromPretrained. */
  readonly nameOrPath: string;
  /** The folder (or the file) on this machine. */
  readonly folder: string;
  readonly dtype: DType;
}

/** A file with weights of a model, as it was when it was opened to load the model. */
export interface StoredFile {
  readonly path: string;
  readonly identity: FileIdentity;
}

/** A batch as tensors: N rows, of which R are computed; all of them, unless some are the same (`Model.sharePrefixes`). */
export interface ModelInputs {
  readonly ids: Tensor; // (R) i32
  /** From `firstPosition` on. */
  readonly positions: Tensor; // (R) i32
  readonly cuSeqlens: Tensor; // (B+1) i32
  readonly lengths: Tensor | null; // (B) i32
  readonly tokenTypes: Tensor | null; // (R) i32
  /** Index of the computed row that stands for each row; null: each row is computed. */
  readonly rowOf: Tensor | null; // (N) i32
  /** First computed row of each segment's own, which are its last ones, and R; null with `rowOf`. */
  readonly cuOwn: Tensor | null; // (B+1) i32
  /** Computed rows whose hidden states are asked for, in their order; null: all. */
  readonly wanted: Tensor | null; // (M) i32
  /** Rows of the longest segment: its largest position + 1, as the batch counts. */
  readonly length: number;
  /** The sequences of a cache that the rows continue. Left out: the segments are whole. */
  readonly cached?: CachedRows;
}

/** New rows of sequences whose earlier rows are in a cache of keys and values. Each segment has the new rows of one sequence. */
export interface CachedRows {
  readonly pass: CachePass;
  /** The position of each row in its sequence, from 0 on. */
  readonly positions: Int32Array; // (R)
  /** Length of each row's sequence, with the new rows. */
  readonly lengths: Int32Array; // (R)
}

/** Options of {@link Model.forward}. */
export interface ForwardOptions {
  /**
   * Rows whose hidden states are wanted, in the order of the result. What the last layer does behind its attention is then
   * done for these alone. Default: all.
   */
  readonly rows?: Int32Array | readonly number[] | undefined; // (M)
  /** Whether rows that are the same may be computed once. Default: `Model.sharePrefixes`. */
  readonly sharePrefixes?: boolean | undefined;
}

/** Settings of the layers for one forward. */
export interface LayerSettings {
  /** Chooses the tensors that a layer keeps for backward. */
  readonly keepOf: (layer: number, rows: number) => LayerKeep;
  /** Called with the output of each layer but the last, see {@link runLayers}; null: none are asked for. */
  readonly onLayer: ((layer: number, stream: Tensor) => void) | null;
}

/** The settings of a forward that is not recorded. */
const kNothingKept: LayerSettings = { keepOf: () => 'saved', onLayer: null };

/** The result of a forward with the hidden states of single layers. */
export interface LayerStates {
  /** The result of forward(). */
  readonly hidden: Tensor;
  /** (N,C) by layer: 0 is the embedding's output, i that of the i-th layer. */
  readonly hiddenStates: ReadonlyMap<number, Tensor>;
}

/** The names of the dtypes in config.json. */
export const DTYPE_NAMES: Readonly<Record<string, string>> = {
  f32: 'float32',
  bf16: 'bfloat16',
  f16: 'float16',
  f64: 'float64',
};

/** A loaded model: hidden states from a batch of unpadded rows, whatever its task. Heads stand apart in its subclasses. */
export abstract class Model extends Module {
  readonly nameOrPath: string;
  readonly folder: string;
  /** Type of the weights and the activations. */
  readonly dtype: DType;
  /**
   * Whether to keep only the input of each layer for backward, which then computes the layer again: less memory, about a third
   * more time. The losses are the same, and the gradients up to rounding. Default false.
   */
  gradientCheckpointing = false;
  /**
   * Chooses the tensors that layer i keeps for backward, for a batch of so many rows, where gradientCheckpointing is off. The
   * losses do not depend on it, and the gradients only by rounding. Default: `lean`; `thin` on a base in the blocks of a GGUF file,
   * which is chosen for its memory.
   */
  layerKeep: (layer: number, rows: number) => LayerKeep = () =>
    this.blockFormat === 'gguf' ? 'thin' : 'lean';
  /**
   * Whether to compute rows once that are the same in several segments of a batch, because these begin with the same tokens (a
   * causal model's rows depend on nothing else). The results are the same up to rounding. It is not done where it saves less than
   * a 32nd of the rows, nor in passes that drop inputs at random. Default true; encoders ignore it.
   */
  sharePrefixes = true;
  /** Set for passes that drop inputs at random, in which no two rows are the same. */
  dropsInputs = false;
  /** The blocks in which frozen matrices are in memory (`baseFormat`); null: their values are. */
  blockFormat: 'nf4' | 'gguf' | null = null;
  /** Whether some of them were quantised as they were read, so that the model is another one than that of its files. */
  isQuantizedHere = false;
  /** The frozen matrices that are read from the disk as they are used (`baseOffload`); null: all weights are in memory. */
  offload: OffloadedBase | null = null;
  /** |W' - W|_F / |W|_F over the weights that were quantised as they were read; null: none was. */
  quantizationError: number | null = null;
  /** The files whose tensors the weights are; null where there are none, or the weights have been changed in memory. */
  stored: readonly StoredFile[] | null = null;
  abstract readonly modelType: string;
  abstract readonly vocabSize: number;
  #device: string | undefined;

  constructor({ nameOrPath, folder, dtype }: ModelOrigin) {
    super();
    this.nameOrPath = nameOrPath;
    this.folder = folder;
    this.dtype = dtype;
  }

  /** Device of the weights, and so of a forward's results: "cpu", "cuda:0". */
  get device(): string {
    this.#device ??= (this.parameters()[0] as Tensor).device;
    return this.#device;
  }

  /** Set while forwardWithHiddenStates() runs. */
  onLayer: LayerSettings['onLayer'] = null;

  /** Chooses the tensors that layer i keeps, by gradientCheckpointing and layerKeep together. */
  readonly keepOf = (layer: number, rows: number): LayerKeep => {
    const keep = this.layerKeep(layer, rows); // which a memory plan learns the rows from, too
    return this.gradientCheckpointing ? 'checkpointed' : keep;
  };

  /** Settings of the layers for a forward of these inputs. */
  protected settingsOf({ cached }: ModelInputs): LayerSettings {
    return cached === undefined ? this : kNothingKept;
  }

  override dispose(): void {
    super.dispose();
    this.offload?.close();
  }

  /** The attentions whose keys and values a cache keeps, by their numbers; null: the model cannot decode step by step. */
  get cachedLayers(): readonly CachedLayer[] | null {
    return null;
  }

  /** Paths of the modules that make up the head, which reads the hidden states. */
  abstract get headPaths(): readonly string[];

  /** PEFT's name for the task of the head. */
  abstract get taskType(): 'CAUSAL_LM' | 'SEQ_CLS' | 'SEQ_2_SEQ_LM';

  /** The configuration as config.json holds it (transformers 5's spelling). */
  abstract configJson(): Record<string, unknown>;

  /** forward() on checked inputs: (N,C), or the rows `inputs.wanted` of it. */
  protected abstract hidden(inputs: ModelInputs): Tensor;

  /** Largest number of rows of a segment, which a learned table of positions limits. */
  protected get maxPositions(): number {
    return Number.POSITIVE_INFINITY;
  }

  /** Number of positions that the configuration names; a batch has others only where it has as many rows. 0: it names none. */
  get configuredPositions(): number {
    return Number.isFinite(this.maxPositions) ? this.maxPositions : 0;
  }

  /** Largest number of tokens that a sequence may have in generation; infinity where nothing limits it. */
  get contextLength(): number {
    return this.maxPositions;
  }

  /** The row of the position table that the first token of a sequence reads. */
  protected get firstPosition(): number {
    return 0;
  }

  /** Whether each row depends only on rows before it, and hidden() uses `rowOf` and `cuOwn`. */
  protected get sharesRows(): boolean {
    return false;
  }

  /** Number of token types that the embedding has; 0: the model ignores tokenTypeIds. */
  protected get tokenTypeCount(): number {
    return 0;
  }

  /** Dropout rates above 0 that the configuration asks for and training does not apply, by their keys. */
  get dropoutRates(): Readonly<Record<string, number>> {
    return {};
  }

  /** Whether the model tells the two texts of a pair apart, so that a batch should say which is which. */
  get readsTokenTypes(): boolean {
    return this.tokenTypeCount > 1;
  }

  /** The name of `dtype` in config.json. */
  protected get dtypeName(): string {
    return DTYPE_NAMES[this.dtype] as string;
  }

  /**
   * Hidden states of the last layer, after the final norm where there is one.
   * @returns (N,C), or (M,C) where M rows are asked for
   * @throws ArgumentError for a batch that does not fit together, ids outside the vocabulary, rows outside the batch, or a
   *   sequence longer than the position table
   */
  forward(batch: ModelBatch, options: ForwardOptions = {}): Tensor {
    return this.onDevice(() => this.hidden(this.prepare(batch, options)));
  }

  /**
   * Computes forward() and returns the outputs of chosen layers with it, for an encoder-decoder those of the decoder: 0 is the
   * embedding's output, i that of the i-th layer. The last layer's output is the result of forward(), after the norm. The caller
   * disposes of the tensors, in a scope as well.
   * @throws ArgumentError for a layer that the model does not have, and as forward()
   */
  forwardWithHiddenStates(
    batch: ModelBatch,
    options: Pick<ForwardOptions, 'rows'> & { readonly layers: readonly number[] },
  ): LayerStates {
    const { layers, rows } = checkKeys('forwardWithHiddenStates', options, 'layers rows');
    const found = new Map<number, Tensor>();
    let count = 0;
    this.onLayer = (layer, stream) => {
      count = Math.max(count, layer);
      if (layers.includes(layer)) found.set(layer, keep(stream));
    };
    try {
      // Rows that are computed once for several segments would be missing among the others' states.
      const hidden = this.forward(batch, { rows, sharePrefixes: false });
      const missing = layers.find((layer) => !found.has(layer));
      if (missing !== undefined) {
        hidden.dispose();
        refuse(
          count === 0
            ? `hiddenStates: this ${this.modelType} model does not report its layers; leave layers out`
            : `hiddenStates: layers must be 0 to ${count}, got ${missing}`,
        );
      }
      return { hidden, hiddenStates: found };
    } catch (error) {
      for (const state of found.values()) state.dispose();
      throw error;
    } finally {
      this.onLayer = null;
    }
  }

  /** Batches of so many rows with ids that any vocabulary has, by which the memory of a row is measured. */
  probeBatches(rows: number): readonly ModelBatch[] {
    return [probeBatch(rows, this.maxPositions)];
  }

  /** Checks a batch as forward() does and returns it as tensors, which the caller disposes of. @throws as forward() */
  prepare(batch: ModelBatch, options: ForwardOptions = {}): Omit<ModelInputs, 'cached'> {
    checkKeys('forward', options, 'rows sharePrefixes');
    const { rows, sharePrefixes = this.sharePrefixes } = options;
    checkBatch(batch, this);
    checkTokenTypes(batch, this.modelType, this.tokenTypeCount);
    const inputs = withDevice(this.device, () =>
      modelInputs(batch, {
        rows,
        firstPosition: this.firstPosition,
        sharePrefixes: sharePrefixes && this.sharesRows && !this.dropsInputs,
      }),
    );
    this.checkLength(inputs.length);
    return inputs;
  }

  /** Computes forward() of inputs that prepare() made. */
  forwardPrepared(inputs: ModelInputs): Tensor {
    return this.onDevice(() => this.hidden(inputs));
  }

  /** Checks that the position table is long enough for a sequence of so many tokens. @throws ArgumentError if it is not */
  checkLength(tokens: number): void {
    checkLength(this.modelType, tokens, this.maxPositions);
  }

  /** Runs a forward in a scope, where ids, masks and tables are made on the model's device. */
  protected onDevice<T>(body: () => T): T {
    return scope(() => withDevice(this.device, body));
  }
}

/**
 * So many rows of one sequence, or of several where the longest has fewer. Each has an id of its own, so that no two share the rows of a
 * common beginning.
 */
export function probeBatch(rows: number, longest = rows): ModelBatch {
  const length = Math.min(rows, longest);
  const sequences = Math.ceil(rows / length);
  return {
    inputIds: Int32Array.from({ length: rows }, (_, i) => Math.floor(i / length)),
    positions: Int32Array.from({ length: rows }, (_, i) => i % length),
    cuSeqlens: Int32Array.from({ length: sequences + 1 }, (_, b) => Math.min(b * length, rows)),
  };
}

/** Checks a sequence's length. @throws ArgumentError naming the model, its limit and the length */
export function checkLength(modelType: string, length: number, maxPositions: number): void {
  if (length <= maxPositions) return;
  throw new ArgumentError(
    `a sequence of ${length} tokens is longer than the position table of this ${modelType} model ` +
      `(${maxPositions}); cut the data with maxLength ${maxPositions} (--max-length)`,
  );
}

/** Options of {@link modelInputs}. */
interface InputOptions extends ForwardOptions {
  /** Default 0. */
  readonly firstPosition?: number;
}

export function modelInputs(
  batch: ModelBatch,
  { rows, firstPosition = 0, sharePrefixes = false }: InputOptions = {},
): ModelInputs {
  const { inputIds, positions, cuSeqlens, lengths, tokenTypeIds } = batch;
  const shared = sharePrefixes ? sharedRows(batch) : null;
  const computed = (all: Int32Array): Int32Array =>
    shared === null ? all : shared.firstOf.map((row) => all[row] as number);
  const wanted = rows === undefined ? null : wantedRows(rows, inputIds.length);
  const chosen =
    shared === null ? wanted : (wanted?.map((row) => shared.rowOf[row] as number) ?? shared.rowOf);
  return {
    ids: tensor(computed(inputIds)),
    positions: tensor(computed(positions).map((position) => position + firstPosition)),
    cuSeqlens: tensor(cuSeqlens),
    lengths: lengths === undefined ? null : tensor(lengths),
    tokenTypes: tokenTypeIds === undefined ? null : tensor(computed(tokenTypeIds)),
    rowOf: shared && tensor(shared.rowOf),
    cuOwn: shared && tensor(shared.cuOwn),
    wanted: chosen && tensor(chosen),
    length: positions.reduce((most, position) => Math.max(most, position), 0) + 1,
  };
}

/** Checks the rows that a caller asked for; null: they are all rows in order. */
function wantedRows(rows: Int32Array | readonly number[], count: number): Int32Array | null {
  if (rows.length === 0) refuse('rows must have at least one row, got none');
  rows.forEach((row, i) => {
    if (Number.isInteger(row) && row >= 0 && row < count) return;
    refuse(`rows[${i}] must be 0 to ${count - 1}, a row of the batch, got ${row}`);
  });
  const all = rows.length === count && rows.every((row, i) => row === i);
  return all ? null : Int32Array.from(rows);
}

function refuse(what: string): never {
  throw new ArgumentError(`forward: ${what}`);
}

function checkTokenTypes(
  { inputIds, tokenTypeIds }: ModelBatch,
  modelType: string,
  count: number,
): void {
  if (tokenTypeIds === undefined) return;
  if (tokenTypeIds.length !== inputIds.length) {
    refuse(
      `tokenTypeIds must be as many as inputIds, ${inputIds.length}, got ${tokenTypeIds.length}`,
    );
  }
  tokenTypeIds.forEach((type, n) => {
    if (type < 0 || (count > 0 && type >= count)) {
      refuse(
        count > 0
          ? `tokenTypeIds[${n}] must be 0 to ${count - 1} for this ${modelType} model, got ${type}`
          : `tokenTypeIds[${n}] must be >= 0, got ${type}`,
      );
    }
  });
}

/**
 * Checks a batch.
 * @throws ArgumentError for parts that do not fit together, ids outside the vocabulary, or positions for which tables would be made
 *   that neither the model nor the batch has a use for
 */
export function checkBatch(
  batch: ModelBatch,
  { vocabSize, configuredPositions }: Pick<Model, 'vocabSize' | 'configuredPositions'>,
): void {
  const { inputIds, positions, cuSeqlens, lengths } = batch;
  const rows = inputIds.length;
  const segments = cuSeqlens.length - 1;
  if (rows === 0) refuse('inputIds must have at least one id, got none');
  if (positions.length !== rows)
    refuse(`positions must be as many as inputIds, ${rows}, got ${positions.length}`);
  if (cuSeqlens[0] !== 0 || cuSeqlens[segments] !== rows) {
    refuse(`cuSeqlens must run from 0 to ${rows}, got ${cuSeqlens[0]} to ${cuSeqlens[segments]}`);
  }
  for (let b = 0; b < segments; ++b) {
    const size = (cuSeqlens[b + 1] as number) - (cuSeqlens[b] as number);
    if (size < 0) refuse(`cuSeqlens must not fall, as it does at segment ${b}`);
    const length = lengths?.[b] ?? size;
    if (length < 0 || length > size)
      refuse(`lengths[${b}] must be 0 to ${size}, the rows of its segment, got ${length}`);
  }
  if (lengths !== undefined && lengths.length !== segments) {
    refuse(`lengths must be as many as segments, ${segments}, got ${lengths.length}`);
  }
  inputIds.forEach((id, n) => {
    if (id < 0 || id >= vocabSize) {
      refuse(`inputIds[${n}] must be 0 to ${vocabSize - 1}, an id of the vocabulary, got ${id}`);
    }
  });
  const most = Math.max(configuredPositions, rows);
  positions.forEach((position, n) => {
    if (position < 0) refuse(`positions[${n}] must be >= 0, got ${position}`);
    if (position < most) return;
    const limit =
      configuredPositions > rows
        ? "max_position_embeddings of the model's configuration"
        : 'the rows of the batch';
    refuse(`positions[${n}] must be below ${most}, ${limit}, got ${position}`);
  });
}
