/**
 * Base class of the encoder-decoders: hidden states of the decoder's rows, from a batch with a text for either side, and a
 * head over the vocabulary that is run apart from them, so that the losses of causal models apply to it too.
 */
import { withDevice } from '../device.ts';
import { ArgumentError } from '../errors.ts';
import type { Tensor } from '../tensor.ts';
import type { ModelBatch } from './batch.ts';
import { type Head, headLogits } from './causal_lm.ts';
import type { ConfigOptions } from './config_keys.ts';
import type { GgufTable } from './gguf.ts';
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

/** Segment b of the decoder reads segment b of the encoder. Targets of the decoder's rows are not shifted. */
export interface Seq2SeqBatch extends ModelBatch {
  /** Inputs of the decoder: its start token, then the target without its last token. */
  readonly decoder: ModelBatch;
}

/** A batch as tensors: the encoder's side, and the decoder's, whose `wanted` rows are the result's. */
export interface Seq2SeqInputs extends ModelInputs {
  readonly decoder: ModelInputs;
}

/**
 * An encoder-decoder; see the head of the file. `layerKeep` counts the layers of the encoder first, then those of the decoder,
 * and the rows of both sides together.
 */
export abstract class Seq2SeqLM extends Model {
  /** The id that the decoder reads first. */
  abstract get decoderStartTokenId(): number;

  /** The id of padding; null where the configuration says that there is none. */
  abstract get padTokenId(): number | null;

  /** The output head; tied models give their embedding. */
  abstract get head(): Head;

  get headPaths(): readonly string[] {
    return ['lm_head'];
  }

  get taskType(): 'SEQ_2_SEQ_LM' {
    return 'SEQ_2_SEQ_LM';
  }

  protected abstract override hidden(inputs: Seq2SeqInputs): Tensor;

  /**
   * Hidden states of the decoder's rows, as the head takes them: after the last norm, and after the factor that tied
   * models put before their head.
   * @returns (N,C), N rows of `batch.decoder`, or those that are asked for
   * @throws ArgumentError for batches that do not fit together, or ids outside the vocabulary
   */
  override forward(batch: Seq2SeqBatch, options: ForwardOptions = {}): Tensor {
    return super.forward(batch, options);
  }

  /** All rows but one are the encoder's, and all but one the decoder's: a row of either side may be the dearer one. */
  override probeBatches(rows: number): readonly Seq2SeqBatch[] {
    return [1, rows - 1].map((targets) => ({
      ...probeBatch(rows - targets),
      decoder: probeBatch(targets),
    }));
  }

  override prepare(batch: Seq2SeqBatch, { rows }: ForwardOptions = {}): Seq2SeqInputs {
    this.#requireDecoder(batch.decoder);
    checkBatch(batch, this.vocabSize);
    checkBatch(batch.decoder, this.vocabSize);
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

  /** Whoever holds this as a `Model` may give it a batch of another kind. */
  #requireDecoder(decoder: unknown): void {
    if (decoder !== undefined) return;
    throw new ArgumentError(
      `forward: the batch has no decoder; ${this.modelType} reads a source and a target, as Seq2SeqBatches makes them`,
    );
  }

  /** See CausalLM.logits. @param hidden (N,C) @returns (rows,V) */
  logits(hidden: Tensor, rows?: Int32Array | readonly number[]): Tensor {
    return headLogits(this.head, hidden, rows);
  }
}

/** An encoder-decoder family, by its model_type: what the loader needs to know of it. */
export interface Seq2SeqFamily {
  readonly modelType: string;
  /** Supported features, for the table in the README. */
  readonly features: string;
  /** Name of the embedding, which a tied head is compared with. */
  readonly embedding: string;
  readonly rename: Rename;
  /** null: llama.cpp has no such architecture. */
  readonly gguf: GgufTable | null;
  /** @throws FormatError, UnsupportedError for a configuration that is wrong or not understood */
  configure(
    json: Record<string, unknown>,
    options: ConfigOptions & { path: string },
  ): {
    /** By the configuration; the file may know better. */
    readonly tied: boolean;
    readonly make: (input: {
      weights: WeightLoader;
      origin: ModelOrigin;
      tied: boolean;
    }) => Seq2SeqLM;
  };
}

/** @throws ArgumentError unless both sides have the same number of segments, and every decoder row an encoder row to read */
function checkSides({ cuSeqlens, lengths, decoder }: Seq2SeqBatch): void {
  const [sources, targets] = [cuSeqlens.length - 1, decoder.cuSeqlens.length - 1];
  if (sources !== targets) {
    throw new ArgumentError(
      `forward: ${sources} segments for the encoder, ${targets} for the decoder`,
    );
  }
  for (let b = 0; b < sources; ++b) {
    const rows = lengths?.[b] ?? (cuSeqlens[b + 1] as number) - (cuSeqlens[b] as number);
    if (rows < 1) throw new ArgumentError(`forward: segment ${b} of the encoder has no tokens`);
  }
}
