/** What the configurations of decoders have in common, read from config.json (transformers 4 and 5). */
import { z } from 'zod';
import { FormatError } from '../errors.ts';
import { type ConfigOptions, parseConfig, refuseValues } from './config_keys.ts';
import type { DecoderConfig, LayerAttention } from './decoder.ts';
import { type RopeConfig, ropeConfig } from './rope.ts';

export const size = z.int().positive();
export const optionalSize = size.nullish();
export const flag = z.boolean().nullish();
export const number = z.number().nullish();
export const text = z.string().nullish();

const kShape = {
  vocab_size: size,
  hidden_size: size,
  intermediate_size: size,
  num_hidden_layers: size,
  num_attention_heads: size,
  num_key_value_heads: optionalSize,
  head_dim: optionalSize,
  rms_norm_eps: z.number().positive().nullish(),
  max_position_embeddings: optionalSize,
  hidden_act: text,
  rope_parameters: z.unknown().optional(),
  rope_scaling: z.unknown().optional(),
  rope_theta: z.number().positive().nullish(),
  partial_rotary_factor: number,
  attention_dropout: number,
  tie_word_embeddings: flag,
};
export type CommonKeys = z.infer<z.ZodObject<typeof kShape>>;

export interface DecoderDefaults {
  /** Values of keys that config.json leaves out, as the family's transformers class has them. */
  readonly rmsNormEps: number;
  readonly ropeTheta: number;
  readonly tied: boolean;
  readonly maxPositions: number;
  /** Default: hidden_size / num_attention_heads. */
  readonly headDim?: number;
  /** Default: num_attention_heads. */
  readonly numKeyValueHeads?: number;
}

export type ReadOptions = ConfigOptions & { readonly path: string };

/**
 * Reads the keys that all decoders share and `extra` ones. What the result says beyond them is Llama's: silu, full
 * attention, no biases, no caps, one rope over the whole head.
 * @throws FormatError for values that are missing or do not fit together, UnsupportedError for keys that are not
 *   understood and for dropout in attention
 */
export function readDecoder<S extends z.ZodRawShape>(
  json: Record<string, unknown>,
  options: ReadOptions,
  { extra, defaults }: { extra: S; defaults: DecoderDefaults },
): { config: DecoderConfig; keys: CommonKeys & z.infer<z.ZodObject<S>> } {
  const { path } = options;
  const keys = parseConfig({ ...kShape, ...extra }, json, options) as CommonKeys &
    z.infer<z.ZodObject<S>>;
  refuseValues(path, { attention_dropout: keys.attention_dropout || null });
  const heads = headShape(keys, defaults, path);
  const maxPositions = keys.max_position_embeddings ?? defaults.maxPositions;
  const config: DecoderConfig = {
    ...heads,
    vocabSize: keys.vocab_size,
    hiddenSize: keys.hidden_size,
    intermediateSize: keys.intermediate_size,
    numLayers: keys.num_hidden_layers,
    maxPositions,
    norm: { eps: keys.rms_norm_eps ?? defaults.rmsNormEps, castBeforeWeight: true },
    activation: 'silu',
    ropes: [ropeOf(keys, heads.headDim, { ...defaults, maxPositions, path })],
    layers: Array.from({ length: keys.num_hidden_layers }, () => ({ window: 0, rope: 0 })),
    attentionScale: 1 / Math.sqrt(heads.headDim),
    attentionSoftcap: 0,
    qkNorm: null,
    qkvBias: false,
    outputBias: false,
    mlpBias: false,
    embeddingScale: 1,
    headSoftcap: 0,
    tied: keys.tie_word_embeddings ?? defaults.tied,
    source: json,
  };
  return { config, keys };
}

function headShape(
  keys: CommonKeys,
  defaults: DecoderDefaults,
  path: string,
): Pick<DecoderConfig, 'numHeads' | 'numKeyValueHeads' | 'headDim'> {
  const refuse = (message: string): never => {
    throw new FormatError(`${path}: ${message}`, { path });
  };
  const numHeads = keys.num_attention_heads;
  const numKeyValueHeads = keys.num_key_value_heads ?? defaults.numKeyValueHeads ?? numHeads;
  if (numHeads % numKeyValueHeads !== 0) {
    refuse(
      `num_attention_heads ${numHeads} is not a multiple of num_key_value_heads ${numKeyValueHeads}`,
    );
  }
  const headDim = keys.head_dim ?? defaults.headDim ?? keys.hidden_size / numHeads;
  if (!Number.isInteger(headDim) || headDim % 2 !== 0) {
    refuse(
      `a head of ${headDim} channels (head_dim, else hidden_size / num_attention_heads) is not even`,
    );
  }
  return { numHeads, numKeyValueHeads, headDim };
}

function ropeOf(
  { rope_parameters, rope_scaling, rope_theta, partial_rotary_factor }: CommonKeys,
  headDim: number,
  { ropeTheta, maxPositions, path }: DecoderDefaults & { path: string },
): RopeConfig {
  const keys = {
    rope_parameters,
    rope_scaling,
    rope_theta: rope_theta ?? ropeTheta,
    partial_rotary_factor,
    max_position_embeddings: maxPositions,
  };
  return ropeConfig(keys, headDim, path);
}

/** @throws UnsupportedError for a rope that leaves part of each head as it is */
export function refusePartialRotary({ ropes, headDim }: DecoderConfig, path: string): void {
  const partial = ropes.find(({ dim }) => dim !== headDim);
  refuseValues(path, { partial_rotary_factor: partial ? partial.dim / headDim : null });
}

const kLayerTypes = ['full_attention', 'sliding_attention'] as const;
/** Keys of models some of whose layers see a window. */
export const kWindowKeys = {
  layer_types: z.array(z.enum(kLayerTypes)).nullish(),
  sliding_window: z.int().nonnegative().nullish(),
};

/**
 * The attention of each layer where some see a window.
 * @param options.isSliding where `layer_types` is absent
 * @param options.globalRope rope of the layers that see everything (default 0)
 */
export function slidingLayers(
  config: DecoderConfig,
  layerTypes: readonly (typeof kLayerTypes)[number][] | null | undefined,
  options: {
    window: number;
    isSliding: (layer: number) => boolean;
    globalRope?: number;
    path: string;
  },
): LayerAttention[] {
  const { window, isSliding, globalRope = 0, path } = options;
  if (layerTypes && layerTypes.length !== config.numLayers) {
    throw new FormatError(
      `${path}: layer_types has ${layerTypes.length} entries for ${config.numLayers} layers`,
      { path },
    );
  }
  return config.layers.map((_, i) => {
    const sliding = layerTypes ? layerTypes[i] === 'sliding_attention' : isSliding(i);
    return sliding ? { window, rope: 0 } : { window: 0, rope: globalRope };
  });
}
