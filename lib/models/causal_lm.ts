/**
 * What every causal language model offers: hidden states from a batch of unpadded rows, and a head that stands apart
 * from them, so that a loss may run it in chunks or on chosen rows only.
 */
import { ArgumentError } from '../errors.ts';
import { Module } from '../nn/index.ts';
import { indexSelect, linear } from '../ops/index.ts';
import { type DType, scope, type Tensor, tensor } from '../tensor.ts';

/** Segments one after the other: N rows, B segments. See `collate`. */
export interface ModelBatch {
  readonly inputIds: Int32Array; // (N)
  readonly positions: Int32Array; // (N)
  readonly cuSeqlens: Int32Array; // (B+1)
  /** Valid rows of each segment, where segments are padded on the right; hidden states of the rest mean nothing. */
  readonly lengths?: Int32Array; // (B)
}

/** logits = hidden weight^T, then softcap * tanh(logits / softcap) where softcap is not 0. */
export interface Head {
  readonly weight: Tensor; // (V,C)
  readonly softcap: number;
}

/** Where a model came from and how it is kept. */
export interface ModelOrigin {
  /** What fromPretrained was given. */
  readonly nameOrPath: string;
  /** The folder (or the file) on this machine. */
  readonly folder: string;
  readonly dtype: DType;
}

export abstract class CausalLM extends Module {
  readonly nameOrPath: string;
  readonly folder: string;
  /** Of the weights and the activations. */
  readonly dtype: DType;
  /**
   * Keep only the sum between blocks for backward and compute each block again there: less memory, about a third more
   * time. Same values. Default false.
   */
  gradientCheckpointing = false;
  abstract readonly modelType: string;
  abstract readonly vocabSize: number;

  constructor({ nameOrPath, folder, dtype }: ModelOrigin) {
    super();
    this.nameOrPath = nameOrPath;
    this.folder = folder;
    this.dtype = dtype;
  }

  /** The output head; tied models give their embedding. */
  abstract get head(): Head;

  /** The configuration as config.json holds it (transformers 5's spelling). */
  abstract configJson(): Record<string, unknown>;

  protected abstract hidden(inputs: ModelInputs): Tensor;

  /**
   * Hidden states after the final norm.
   * @returns (N,C)
   * @throws ArgumentError for a batch that does not fit together or ids outside the vocabulary
   */
  forward(batch: ModelBatch): Tensor {
    checkBatch(batch, this.vocabSize);
    return scope(() => this.hidden(modelInputs(batch)));
  }

  /**
   * Logits of all rows of a forward's result, or of chosen ones.
   * @param hidden (N,C)
   * @param rows indices into the N rows; all of them if left out
   * @returns (rows,V)
   */
  logits(hidden: Tensor, rows?: Int32Array | readonly number[]): Tensor {
    const { weight, softcap } = this.head;
    if (softcap > 0)
      throw new ArgumentError('logits: a model with soft-capping must override this');
    return scope(() => {
      const chosen =
        rows === undefined ? hidden : indexSelect(hidden, tensor(Int32Array.from(rows)));
      return linear(chosen, weight);
    });
  }
}

/** A batch as tensors. */
export interface ModelInputs {
  readonly ids: Tensor; // (N) i32
  readonly positions: Tensor; // (N) i32
  readonly cuSeqlens: Tensor; // (B+1) i32
  readonly lengths: Tensor | null; // (B) i32
  /** Largest position + 1. */
  readonly length: number;
}

function modelInputs({ inputIds, positions, cuSeqlens, lengths }: ModelBatch): ModelInputs {
  return {
    ids: tensor(inputIds),
    positions: tensor(positions),
    cuSeqlens: tensor(cuSeqlens),
    lengths: lengths === undefined ? null : tensor(lengths),
    length: positions.reduce((most, position) => Math.max(most, position), 0) + 1,
  };
}

function checkBatch(batch: ModelBatch, vocabSize: number): void {
  const { inputIds, positions, cuSeqlens, lengths } = batch;
  const rows = inputIds.length;
  const segments = cuSeqlens.length - 1;
  const refuse = (what: string): never => {
    throw new ArgumentError(`forward: ${what}`);
  };
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
