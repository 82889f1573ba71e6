/** Keys that the configurations of all decoders share, read from config.json (transformers 4 and 5). */
import { z } from 'zod';
import {
  configError,
  layerCount,
  optionalSize,
  type ParseConfigOptions,
  parseConfig,
  positionCount,
  refuseValues,
  size,
  windowSize,
} from './config_keys.ts';
import type { DecoderConfig, LayerAttention } from './decoder.ts';
import { type RopeConfig, ropeConfig } from './rope.ts';

export const flag = z.boolean().nullish();
export const number = z.number().nullish();
export const text = z.string().nullish();

const kShape = {
  vocab_size: size,
  hidden_size: size,
  intermediate_size: size,
  num_hidden_layers: layerCount,
  num_attention_heads: size,
  num_key_value_heads: optionalSize,
  head_dim: optionalSize,
  rms_norm_eps: z.number().positive().nullish(),
  max_position_embeddings: positionCount.nullish(),
  hidden_act: text,
  rope_parameters: z.unknown().optional(),
  rope_scaling: z.unknown().optional(),
  rope_theta: z.number().positive().nullish(),
  partial_rotary_factor: z.number().positive().max(1).nullish(),
  attention_dropout: number,
  tie_word_embeddings: flag,
};
export type CommonKeys = z.infer<z.ZodObject<typeof kShape>>;

/** Values for keys that config.json leaves out: the defaults of the family's transformers class. */
export interface DecoderDefaults {
  readonly rmsNormEps: number;
  readonly ropeTheta: number;
  readonly tied: boolean;
  readonly maxPositions: number;
  /** Default: hidden_size / num_attention_heads. */
  readonly headDim?: number;
  /** Default: num_attention_heads. */
  readonly numKeyValueHeads?: number;
}

export type ReadOptions = ParseConfigOptions;

/** The parts of a family's configuration that differ from those of other decoders. */
export interface DecoderReading<S extends z.ZodRawShape> {
  /** Schemas of the family's own keys. */
  readonly extra: S;
  readonly defaults: DecoderDefaults;
  /** Values of hidden_act that are computed, the default first. Default: silu alone. */
  readonly hiddenAct?: readonly string[];
  /** Whether the rotary embedding may apply to a part of each head alone. Default false. */
  readonly partialRotary?: boolean;
}

/**
 * Reads the keys that all decoders share and a family's own. Other fields of the result are those of Llama: silu, full attention,
 * no biases, no soft-capping, one rotary embedding.
 * @throws FormatError for values that are missing or do not fit together, UnsupportedError for keys that are not
 *   understood, other activations, and dropout in attention
 */
export function readDecoder<S extends z.ZodRawShape>(
  json: Record<string, unknown>,
  options: ReadOptions,
  { extra, defaults, hiddenAct = ['silu'], partialRotary = false }: DecoderReading<S>,
): { config: DecoderConfig; keys: CommonKeys & z.infer<z.ZodObject<S>> } {
  const { path } = options;
  const keys = parseConfig({ ...kShape, ...extra }, json, options) as CommonKeys &
    z.infer<z.ZodObject<S>>;
  const act = keys.hidden_act ?? (hiddenAct[0] as string);
  refuseValues(path, {
    attention_dropout: keys.attention_dropout || null,
    hidden_act: hiddenAct.includes(act) ? null : act,
  });
  const heads = headShape(keys, defaults, path);
  const maxPositions = keys.max_position_embeddings ?? defaults.maxPositions;
  const rope = ropeOf(keys, heads.headDim, { ...defaults, maxPositions, path });
  if (rope.dim !== heads.headDim && !partialRotary) {
    refuseValues(path, { partial_rotary_factor: rope.dim / heads.headDim });
  }
  const config: DecoderConfig = {
    ...heads,
    vocabSize: keys.vocab_size,
    hiddenSize: keys.hidden_size,
    intermediateSize: keys.intermediate_size,
    numLayers: keys.num_hidden_layers,
    maxPositions,
    norm: { eps: keys.rms_norm_eps ?? defaults.rmsNormEps, castBeforeWeight: true },
    activation: 'silu',
    ropes: [rope],
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
    throw configError(path, message);
  };
  const numHeads = keys.num_attention_heads;
  // null is as many as heads; left out it is the class's default.
  const { num_key_value_heads: given = defaults.numKeyValueHeads } = keys;
  const numKeyValueHeads = given ?? numHeads;
  if (numHeads % numKeyValueHeads !== 0) {
    refuse(
      `num_attention_heads ${numHeads} must be a multiple of num_key_value_heads ${numKeyValueHeads}`,
    );
  }
  const headDim = keys.head_dim ?? defaults.headDim ?? keys.hidden_size / numHeads;
  if (!Number.isInteger(headDim) || headDim % 2 !== 0) {
    refuse(
      `the channels of a head (head_dim, else hidden_size / num_attention_heads) must be even, got ${headDim}`,
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

const kLayerTypes = ['full_attention', 'sliding_attention'] as const;
/** Keys of models with sliding-window attention in some layers. */
export const kWindowKeys = {
  layer_types: z.array(z.enum(kLayerTypes)).nullish(),
  sliding_window: windowSize.nullish(),
};

export interface SlidingOptions {
  /** `layer_types` of config.json; where it is absent, `isSliding` decides. */
  readonly layerTypes: readonly (typeof kLayerTypes)[number][] | null | undefined;
  readonly isSliding: (layer: number) => boolean;
  /** Number of keys that a row of a sliding layer attends to; 0: all. */
  readonly window: number;
  /** Index of the rope of layers with full attention. Default 0. */
  readonly globalRope?: number;
  readonly path: string;
}

/** The attention of each layer where some have a sliding window. @throws FormatError for a list of another length */
export function slidingLayers(
  { layers }: DecoderConfig,
  { layerTypes, isSliding, window, globalRope = 0, path }: SlidingOptions,
): LayerAttention[] {
  if (layerTypes && layerTypes.length !== layers.length) {
    throw configError(
      path,
      `layer_types must have one entry for each of the ${layers.length} layers, got ${layerTypes.length}`,
    );
  }
  return layers.map((_, i) => {
    const sliding = layerTypes ? layerTypes[i] === 'sliding_attention' : isSliding(i);
    return sliding ? { window, rope: 0 } : { window: 0, rope: globalRope };
  });
}
