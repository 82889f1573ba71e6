/**
 * Base class of the encoder-decoders: hidden states of the decoder's rows, from a batch with a text for either side, and a head over
 * the vocabulary that is computed separately, so that the losses of causal models apply to encoder-decoders, too.
 */
import { withDevice } from '../device.ts';
import { ArgumentError } from '../errors.ts';
import { checkKeys } from '../options/call.ts';
import { batchInvariant } from '../runtime.ts';
import { noGrad, type Tensor, tensor } from '../tensor.ts';
import { batchOf, type ModelBatch } from './batch.ts';
import { addedRows, cachedInputs, checkTokens, type NewTokens } from './cached_rows.ts';
import { type Head, headLogits } from './causal_lm.ts';
import type { ParseConfigOptions } from './config_keys.ts';
import type { GgufTable } from './gguf.ts';
import type { AddedRows, KvCache } from './kv_cache.ts';
import {
  checkBatch,
  type ForwardOptions,
  Model,
  type ModelInputs,
  type ModelOrigin,
  modelInputs,
  probeBatch,
} from './model.ts';
import type { Rename } from './renamed_weights.ts';
import type { WeightLoader } from './weights.ts';

/** A batch for both sides: segment b of the decoder reads segment b of the encoder. Targets of the decoder's rows are not shifted. */
export interface Seq2SeqBatch extends ModelBatch {
  /** Inputs of the decoder: its start token, then the target without its last token. */
  readonly decoder: ModelBatch;
}

/** A batch as tensors: the encoder's side, and the decoder's, whose `wanted` rows are the result's. */
export interface Seq2SeqInputs extends ModelInputs {
  readonly decoder: ModelInputs;
}

/** New tokens of the decoder. A new sequence gets its source with them. */
export interface NewSeq2SeqTokens extends NewTokens {
  /** The encoder's tokens, at least one; left out for a sequence that has them. */
  readonly source?: Int32Array | readonly number[] | undefined;
}

/** The rows of the encoder that the decoder reads. */
export interface EncoderRows {
  readonly states: Tensor; // (M,C)
  readonly cuSeqlens: Tensor; // (B+1) i32
  readonly lengths: Tensor | null; // (B) i32
}

/**
 * An encoder-decoder language model: hidden states of the decoder's rows, and a head over the vocabulary that is computed separately.
 * `layerKeep` counts the layers of the encoder first, then those of the decoder, and the rows of both sides together.
 */
export abstract class Seq2SeqLM extends Model {
  /** The id of the decoder's first input token. */
  abstract get decoderStartTokenId(): number;

  /** The id of padding; null where the configuration says that there is none. */
  abstract get padTokenId(): number | null;

  /** The output head; in a tied model its weight is the embedding. */
  abstract get head(): Head;

  get headPaths(): readonly string[] {
    return ['lm_head'];
  }

  get taskType(): 'SEQ_2_SEQ_LM' {
    return 'SEQ_2_SEQ_LM';
  }

  protected abstract override hidden(inputs: Seq2SeqInputs): Tensor;

  /** (M,C): the encoder's states for `batch`, after its last norm. */
  abstract encode(batch: ModelBatch): Tensor;

  /**
   * (N,C): the decoder's states as the head reads them.
   * @param encoder the encoder's rows; null where a cache has them
   */
  protected abstract decoded(target: ModelInputs, encoder: EncoderRows | null): Tensor;

  /**
   * Hidden states of the last token of each sequence; see CausalLM.forwardCached. The encoder runs over the sources of new
   * sequences, and each layer's keys and values of its rows are kept in the cache.
   * @param tokens either all with a source or none
   */
  forwardCached(cache: KvCache, tokens: readonly NewSeq2SeqTokens[]): Tensor {
    const checkLength = (length: number): void => this.checkLength(length);
    checkTokens(cache, tokens, { vocabSize: this.vocabSize, checkLength });
    const batch = sourcesOf(tokens);
    return this.onDevice(() =>
      noGrad(() =>
        batchInvariant(() => {
          const encoder = batch && encoderRows(batch, this.encode(batch));
          return cache.extend(
            { own: addedRows(tokens), encoder: batch && addedSources(tokens) },
            (pass) => this.decoded(cachedInputs(cache, tokens, pass), encoder),
          );
        }),
      ),
    );
  }

  /**
   * Hidden states of the decoder's rows as the head reads them: after the last norm, and multiplied by the factor that tied
   * models apply before their head.
   * @returns (N,C) for the N rows of `batch.decoder`, or for those that are asked for
   * @throws ArgumentError for batches that do not fit together, or ids outside the vocabulary
   */
  override forward(batch: Seq2SeqBatch, options: ForwardOptions = {}): Tensor {
    return super.forward(batch, options);
  }

  /**
   * Two batches of so many rows, since a row of either side may take more memory: in one, all rows but one are the encoder's, in
   * the other all but one are the decoder's.
   */
  override probeBatches(rows: number): readonly Seq2SeqBatch[] {
    return [1, rows - 1].map((targets) => ({
      ...probeBatch(rows - targets),
      decoder: probeBatch(targets),
    }));
  }

  override prepare(batch: Seq2SeqBatch, options: ForwardOptions = {}): Seq2SeqInputs {
    const { rows } = checkKeys('forward', options, 'rows sharePrefixes');
    this.#requireDecoder(batch.decoder);
    checkBatch(batch, this);
    checkBatch(batch.decoder, this);
    checkSides(batch);
    const inputs = withDevice(this.device, () => ({
      ...modelInputs(batch),
      decoder: modelInputs(batch.decoder, { rows }),
    }));
    this.checkLength(Math.max(inputs.length, inputs.decoder.length));
    return inputs;
  }

  override forwardPrepared(inputs: Seq2SeqInputs): Tensor {
    this.#requireDecoder(inputs.decoder);
    return super.forwardPrepared(inputs);
  }

  /** Checks at run time that there is a decoder batch, since a caller may know this object as a `Model` alone. */
  #requireDecoder(decoder: unknown): void {
    if (decoder !== undefined) return;
    throw new ArgumentError(
      `forward: the batch has no decoder, but ${this.modelType} reads a source and a target; make batches with Seq2SeqBatches`,
    );
  }

  /** See CausalLM.logits. @param hidden (N,C) @returns (rows,V) */
  logits(hidden: Tensor, rows?: Int32Array | readonly number[]): Tensor {
    return headLogits(this.head, hidden, rows);
  }
}

/** An encoder-decoder family, by its model_type, as the loader uses it. */
export interface Seq2SeqFamily {
  readonly modelType: string;
  /** Supported features, for the table in the README. */
  readonly features: string;
  /** Name of the embedding that a tied head is compared with. */
  readonly embedding: string;
  readonly rename: Rename;
  /** null: llama.cpp has no such architecture. */
  readonly gguf: GgufTable | null;
  /** @throws FormatError, UnsupportedError for a configuration that is wrong or not understood */
  configure(
    json: Record<string, unknown>,
    options: ParseConfigOptions,
  ): {
    /** Whether the configuration ties the head to the embedding; the file may hold a head that differs. */
    readonly tied: boolean;
    readonly make: (input: {
      weights: WeightLoader;
      origin: ModelOrigin;
      tied: boolean;
    }) => Seq2SeqLM;
  };
}

/**
 * Checks the two sides of a batch against each other.
 * @throws ArgumentError unless both have the same number of segments, and every segment of the encoder has a row
 */
function checkSides({ cuSeqlens, lengths, decoder }: Seq2SeqBatch): void {
  const [sources, targets] = [cuSeqlens.length - 1, decoder.cuSeqlens.length - 1];
  if (sources !== targets) {
    throw new ArgumentError(
      `forward: the decoder must have as many segments as the encoder, ${sources}, got ${targets}`,
    );
  }
  for (let b = 0; b < sources; ++b) {
    const rows = lengths?.[b] ?? (cuSeqlens[b + 1] as number) - (cuSeqlens[b] as number);
    if (rows < 1)
      throw new ArgumentError(`forward: segment ${b} of the encoder must have at least one token`);
  }
}

/** The sources of new sequences as a batch; null: the sequences have theirs. */
function sourcesOf(tokens: readonly NewSeq2SeqTokens[]): ModelBatch | null {
  const sources = tokens.flatMap(({ source }) => (source === undefined ? [] : [source]));
  if (sources.length === 0) return null;
  if (sources.length < tokens.length || sources.some(({ length }) => length === 0)) {
    throw new ArgumentError('either every sequence gets a source of at least one id, or none does');
  }
  return batchOf(sources);
}

function addedSources(tokens: readonly NewSeq2SeqTokens[]): AddedRows {
  return {
    sequences: tokens.map(({ sequence }) => sequence),
    counts: tokens.map(({ source }) => source?.length ?? 0),
  };
}

function encoderRows({ cuSeqlens }: ModelBatch, states: Tensor): EncoderRows {
  return { states, cuSeqlens: tensor(cuSeqlens), lengths: null };
}
