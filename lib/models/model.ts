/**
 * Base class of all models, whatever their task: hidden states from a batch of unpadded rows. Heads are apart from them
 * (see causal_lm.ts, sequence_classifier.ts), so that a loss may run a head in chunks or on chosen rows only.
 */
import { withDevice } from '../device.ts';
import { ArgumentError } from '../errors.ts';
import { Module } from '../nn/index.ts';
import { type DType, keep, scope, type Tensor, tensor } from '../tensor.ts';
import type { ModelBatch } from './batch.ts';
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

/** How the layers of one forward are run. */
export interface LayersKept {
  /** Chooses what a layer keeps for backward. */
  readonly keepOf: (layer: number, rows: number) => LayerKeep;
  /** Called with the output of each layer but the last, see {@link runLayers}; null: nobody asks. */
  readonly onLayer: ((layer: number, stream: Tensor) => void) | null;
}

/** Hidden states of a forward that was asked for those of single layers, too. */
export interface LayerStates {
  /** The result of forward(). */
  readonly hidden: Tensor;
  /** (N,C) by layer: 0 is the embedding's output, i that of the i-th layer. */
  readonly hiddenStates: ReadonlyMap<number, Tensor>;
}

/** The word of config.json for a dtype. */
const kDTypeNames: Readonly<Record<string, string>> = {
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
   * Keep only the sum between blocks for backward and compute each block again there: less memory, about a third more
   * time. Same losses, gradients but for rounding. Default false.
   */
  gradientCheckpointing = false;
  /**
   * Chooses what layer i keeps for backward of a batch of so many rows, where gradientCheckpointing is off. The losses do
   * not depend on it, and the gradients only by rounding. Default: `lean`.
   */
  layerKeep: (layer: number, rows: number) => LayerKeep = () => 'lean';
  /**
   * Compute rows once that are the same in several segments of a batch, since these begin with the same tokens and a causal
   * model's rows depend on nothing else. The same results but for rounding. Not done where it saves less than a 32nd of the
   * rows, nor in passes that drop inputs at random. Default true; of no meaning to an encoder.
   */
  sharePrefixes = true;
  /** Set for passes that drop inputs at random, in which no two rows are the same. */
  dropsInputs = false;
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
  onLayer: LayersKept['onLayer'] = null;

  /** Chooses what layer i keeps, by all settings together. */
  readonly keepOf = (layer: number, rows: number): LayerKeep =>
    this.gradientCheckpointing ? 'checkpointed' : this.layerKeep(layer, rows);

  /** Paths of the modules that make up the head: what stands above the hidden states. */
  abstract get headPaths(): readonly string[];

  /** PEFT's word for what the head does. */
  abstract get taskType(): 'CAUSAL_LM' | 'SEQ_CLS' | 'SEQ_2_SEQ_LM';

  /** The configuration as config.json holds it (transformers 5's spelling). */
  abstract configJson(): Record<string, unknown>;

  /** forward() on checked inputs: (N,C), or the rows `inputs.wanted` of it. */
  protected abstract hidden(inputs: ModelInputs): Tensor;

  /** Rows that a segment may have: the positions of a learned table. */
  protected get maxPositions(): number {
    return Number.POSITIVE_INFINITY;
  }

  /** Row of the position table that a sequence's first token reads. */
  protected get firstPosition(): number {
    return 0;
  }

  /** Whether a row depends on rows before it alone, and hidden() heeds `rowOf` and `cuOwn`. */
  protected get sharesRows(): boolean {
    return false;
  }

  /** Kinds of token that the embedding tells apart; 0: the model does not look at tokenTypeIds. */
  protected get tokenTypeCount(): number {
    return 0;
  }

  /** Rates above 0 of the dropouts that the configuration asks for and training does not apply, by their keys. */
  get dropoutRates(): Readonly<Record<string, number>> {
    return {};
  }

  /** Whether the model tells the two texts of a pair apart, so that a batch should say which is which. */
  get readsTokenTypes(): boolean {
    return this.tokenTypeCount > 1;
  }

  /** `dtype` in the words of config.json. */
  protected get dtypeName(): string {
    return kDTypeNames[this.dtype] as string;
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
   * forward(), and the outputs of chosen layers on the way, of an encoder-decoder those of the decoder: 0 is the embedding's, i
   * that of the i-th layer. The last layer's output is what forward() gives (before its norm it is not to be had). The tensors
   * are the caller's to dispose, in a scope as well.
   * @throws ArgumentError for a layer that the model does not have, and as forward()
   */
  forwardWithHiddenStates(
    batch: ModelBatch,
    { layers, rows }: Pick<ForwardOptions, 'rows'> & { readonly layers: readonly number[] },
  ): LayerStates {
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
            ? `hiddenStates: this ${this.modelType} model does not tell of its layers`
            : `hiddenStates: layers are 0 to ${count}, got ${missing}`,
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

  /** Batches of so many rows with ids that any vocabulary has, to measure what a row of a forward takes at most. */
  probeBatches(rows: number): readonly ModelBatch[] {
    return [probeBatch(rows)];
  }

  /** The checks of forward(), and the batch as tensors: the caller's to dispose. @throws as forward() */
  prepare(
    batch: ModelBatch,
    { rows, sharePrefixes = this.sharePrefixes }: ForwardOptions = {},
  ): ModelInputs {
    checkBatch(batch, this.vocabSize);
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

  /** forward() of what prepare() made. */
  forwardPrepared(inputs: ModelInputs): Tensor {
    return this.onDevice(() => this.hidden(inputs));
  }

  /** @throws ArgumentError for a sequence of so many tokens that the position table does not reach */
  checkLength(tokens: number): void {
    checkLength(this.modelType, tokens, this.maxPositions);
  }

  /** Runs a forward in a scope, where ids, masks and tables are made on the model's device. */
  protected onDevice<T>(body: () => T): T {
    return scope(() => withDevice(this.device, body));
  }
}

/** A sequence of so many rows of the first id. */
export function probeBatch(rows: number): ModelBatch {
  return {
    inputIds: new Int32Array(rows),
    positions: Int32Array.from({ length: rows }, (_, i) => i),
    cuSeqlens: Int32Array.of(0, rows),
  };
}

/** @throws ArgumentError naming the model, its limit and the length */
export function checkLength(modelType: string, length: number, maxPositions: number): void {
  if (length <= maxPositions) return;
  throw new ArgumentError(
    `a sequence of ${length} tokens is longer than the position table of this ${modelType} model ` +
      `(${maxPositions}): cut the data with maxLength ${maxPositions} (--max-length)`,
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

/** The rows; null for all of them in order. */
function wantedRows(rows: Int32Array | readonly number[], count: number): Int32Array | null {
  if (rows.length === 0) refuse('no rows are wanted');
  rows.forEach((row, i) => {
    if (Number.isInteger(row) && row >= 0 && row < count) return;
    refuse(`rows[${i}] = ${row} is not a row of the batch of ${count}`);
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
    refuse(`${inputIds.length} ids, but ${tokenTypeIds.length} tokenTypeIds`);
  }
  tokenTypeIds.forEach((type, n) => {
    if (type < 0 || (count > 0 && type >= count)) {
      refuse(`tokenTypeIds[${n}] = ${type}, this ${modelType} model has ${count} kind(s) of token`);
    }
  });
}

/** @throws ArgumentError for parts that do not fit together, or ids outside the vocabulary */
export function checkBatch(batch: ModelBatch, vocabSize: number): void {
  const { inputIds, positions, cuSeqlens, lengths } = batch;
  const rows = inputIds.length;
  const segments = cuSeqlens.length - 1;
  if (rows === 0) refuse('the batch has no rows');
  if (positions.length !== rows) refuse(`${rows} ids, but ${positions.length} positions`);
  if (cuSeqlens[0] !== 0 || cuSeqlens[segments] !== rows) {
    refuse(`cuSeqlens must run from 0 to ${rows}, got ${cuSeqlens[0]} to ${cuSeqlens[segments]}`);
  }
  for (let b = 0; b < segments; ++b) {
    const size = (cuSeqlens[b + 1] as number) - (cuSeqlens[b] as number);
    if (size < 0) refuse(`cuSeqlens falls at segment ${b}`);
    const length = lengths?.[b] ?? size;
    if (length < 0 || length > size)
      refuse(`lengths[${b}] = ${length}, its segment has ${size} rows`);
  }
  if (lengths !== undefined && lengths.length !== segments) {
    refuse(`${segments} segments, but ${lengths.length} lengths`);
  }
  inputIds.forEach((id, n) => {
    if (id < 0 || id >= vocabSize) {
      refuse(`inputIds[${n}] = ${id} is outside the vocabulary of ${vocabSize}`);
    }
  });
  positions.forEach((position, n) => {
    if (position < 0) refuse(`positions[${n}] = ${position} is negative`);
  });
}
