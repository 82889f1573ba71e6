/** The configuration of the t5 architecture, v1.0 and v1.1, read from config.json (transformers 4 and 5). */
import { z } from 'zod';
import type { RmsNormOptions } from '../ops/index.ts';
import { type Activation, activation } from './activations.ts';
import {
  configError,
  ignored,
  layerCount,
  optionalSize,
  type ParseConfigOptions,
  parseConfig,
  positionCount,
  refuseValues,
  size,
} from './config_keys.ts';

/** The part of a t5 configuration that its computation needs. */
export interface T5Config {
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly encoderLayers: number;
  readonly decoderLayers: number;
  readonly numHeads: number;
  readonly headDim: number;
  readonly norm: Readonly<RmsNormOptions>;
  /** Activation of the mlp, or of its gate where it is gated. */
  readonly activation: Activation;
  readonly gated: boolean;
  readonly numBuckets: number;
  readonly maxDistance: number;
  readonly tied: boolean;
  /** Whether the decoder's states are multiplied by C^-1/2 before the head. */
  readonly scaledHead: boolean;
  /** The id of the decoder's first input token. */
  readonly decoderStartTokenId: number;
  /** null: the configuration says that there is none. */
  readonly padTokenId: number | null;
  readonly source: Readonly<Record<string, unknown>>;
}

const kShape = {
  vocab_size: size,
  d_model: size,
  d_kv: size,
  d_ff: size,
  num_layers: layerCount,
  num_decoder_layers: layerCount.nullish(),
  num_heads: size,
  relative_attention_num_buckets: optionalSize,
  relative_attention_max_distance: positionCount.nullish(),
  layer_norm_epsilon: z.number().positive().nullish(),
  feed_forward_proj: z.string().nullish(),
  tie_word_embeddings: z.boolean().nullish(),
  scale_decoder_outputs: z.boolean().nullish(),
  decoder_start_token_id: z.int().nonnegative().nullish(),
  pad_token_id: z.int().nullish(), // -1: none
  // feed_forward_proj determines the first two; dropout is not applied; the rest is about initialisation.
  ...ignored(
    'is_gated_act dense_act_fn dropout_rate classifier_dropout initializer_factor n_positions',
  ),
};

/** Reads a t5 configuration. @throws FormatError for values that are missing or wrong, UnsupportedError for those not supported */
export function t5Config(json: Record<string, unknown>, options: ParseConfigOptions): T5Config {
  const { path } = options;
  const config = parseConfig(kShape, json, options);
  const tied = config.tie_word_embeddings ?? true;
  const buckets = config.relative_attention_num_buckets ?? 32;
  if (buckets < 4) {
    throw configError(path, `relative_attention_num_buckets must be >= 4, got ${buckets}`);
  }
  return {
    vocabSize: config.vocab_size,
    hiddenSize: config.d_model,
    intermediateSize: config.d_ff,
    encoderLayers: config.num_layers,
    decoderLayers: config.num_decoder_layers ?? config.num_layers,
    numHeads: config.num_heads,
    headDim: config.d_kv,
    norm: { eps: config.layer_norm_epsilon ?? 1e-6, castBeforeWeight: true },
    ...feedForward(config.feed_forward_proj ?? 'relu', path),
    numBuckets: buckets,
    maxDistance: config.relative_attention_max_distance ?? 128,
    tied,
    // transformers 4 had one key for both.
    scaledHead: config.scale_decoder_outputs ?? tied,
    ...tokenIds(config, path),
    source: json,
  };
}

/** transformers' pad_token_id is 0 where the file has none, and every published T5 starts its decoder with it. */
function tokenIds(
  config: {
    vocab_size: number;
    decoder_start_token_id?: number | null;
    pad_token_id?: number | null;
  },
  path: string,
): Pick<T5Config, 'decoderStartTokenId' | 'padTokenId'> {
  const pad = config.pad_token_id ?? 0;
  const padTokenId = pad < 0 ? null : pad;
  const decoderStartTokenId = config.decoder_start_token_id ?? padTokenId ?? 0;
  for (const [key, id] of [
    ['pad_token_id', padTokenId ?? 0],
    ['decoder_start_token_id', decoderStartTokenId],
  ] as const) {
    if (id < config.vocab_size) continue;
    throw configError(path, `${key} must be below vocab_size ${config.vocab_size}, got ${id}`);
  }
  return { decoderStartTokenId, padTokenId };
}

/** Reads feed_forward_proj, such as `relu` or `gated-gelu`, whose gelu is the approximation by tanh. */
function feedForward(stated: string, path: string): { activation: Activation; gated: boolean } {
  const [first, second, ...rest] = stated.split('-');
  const gated = first === 'gated' && second !== undefined;
  refuseValues(path, {
    feed_forward_proj: rest.length > 0 || (second !== undefined && !gated) ? stated : null,
  });
  const name = gated ? (second === 'gelu' ? 'gelu_new' : second) : (first as string);
  return { gated, activation: activation(name, { path, key: 'feed_forward_proj' }) };
}
