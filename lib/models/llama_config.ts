/** The configuration of the llama architecture, read from config.json (transformers 4 and 5) and written back. */
import { z } from 'zod';
import { FormatError, UnsupportedError } from '../errors.ts';
import { type ConfigOptions, parseConfig } from './config_keys.ts';
import { type RopeConfig, ropeConfig } from './rope.ts';

/** What of a configuration the mathematics needs. */
export interface LlamaConfig {
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly numLayers: number;
  readonly numHeads: number;
  readonly numKeyValueHeads: number;
  readonly headDim: number;
  readonly rmsNormEps: number;
  readonly maxPositions: number;
  readonly rope: RopeConfig;
  /** Biases on q, k, v; on o; on gate, up, down. */
  readonly qkvBias: boolean;
  readonly outputBias: boolean;
  readonly mlpBias: boolean;
  readonly tied: boolean;
  /** config.json's own keys, for writing it back. */
  readonly source: Readonly<Record<string, unknown>>;
}

const size = z.int().positive();
const optionalSize = size.nullish();
const flag = z.boolean().nullish();
const kShape = {
  vocab_size: size,
  hidden_size: size,
  intermediate_size: size,
  num_hidden_layers: size,
  num_attention_heads: size,
  num_key_value_heads: optionalSize,
  head_dim: optionalSize,
  hidden_act: z.string().nullish(),
  rms_norm_eps: z.number().positive().nullish(),
  max_position_embeddings: optionalSize,
  rope_parameters: z.unknown().optional(),
  rope_scaling: z.unknown().optional(),
  rope_theta: z.number().positive().nullish(),
  rope_interleaved: flag,
  partial_rotary_factor: z.number().nullish(),
  attention_bias: flag,
  attention_dropout: z.number().nullish(),
  mlp_bias: flag,
  tie_word_embeddings: flag,
};
type Json = z.infer<z.ZodObject<typeof kShape>>;

/**
 * @throws FormatError for values that are missing or do not fit together, UnsupportedError for what would change the
 *   mathematics and is not supported
 */
export function llamaConfig(
  json: Record<string, unknown>,
  options: ConfigOptions & { path: string },
): LlamaConfig {
  const { path } = options;
  const config = parseConfig(kShape, json, options);
  refuseVariants(config, path);
  const numHeads = config.num_attention_heads;
  const numKeyValueHeads = config.num_key_value_heads ?? numHeads;
  const refuse = (message: string): never => {
    throw new FormatError(`${path}: ${message}`, { path });
  };
  if (numHeads % numKeyValueHeads !== 0) {
    refuse(
      `num_attention_heads ${numHeads} is not a multiple of num_key_value_heads ${numKeyValueHeads}`,
    );
  }
  const headDim = config.head_dim ?? config.hidden_size / numHeads;
  if (!Number.isInteger(headDim) || headDim % 2 !== 0) {
    refuse(
      `a head of ${headDim} channels (head_dim, else hidden_size / num_attention_heads) is not even`,
    );
  }
  const maxPositions = config.max_position_embeddings ?? 2048;
  const ropeKeys = {
    rope_parameters: config.rope_parameters,
    rope_scaling: config.rope_scaling,
    rope_theta: config.rope_theta ?? undefined,
    max_position_embeddings: maxPositions,
  };
  return {
    vocabSize: config.vocab_size,
    hiddenSize: config.hidden_size,
    intermediateSize: config.intermediate_size,
    numLayers: config.num_hidden_layers,
    numHeads,
    numKeyValueHeads,
    headDim,
    rmsNormEps: config.rms_norm_eps ?? 1e-6,
    maxPositions,
    rope: ropeConfig(ropeKeys, headDim, path),
    qkvBias: config.attention_bias ?? false,
    outputBias: config.attention_bias ?? false,
    mlpBias: config.mlp_bias ?? false,
    tied: config.tie_word_embeddings ?? false,
    source: json,
  };
}

function refuseVariants(config: Json, path: string): void {
  const refused: [boolean, string][] = [
    [
      (config.hidden_act ?? 'silu') !== 'silu',
      `hidden_act "${config.hidden_act}" (llama uses silu)`,
    ],
    [(config.attention_dropout ?? 0) !== 0, `attention_dropout ${config.attention_dropout}`],
    [config.rope_interleaved === true, 'rope_interleaved true'],
    [
      (config.partial_rotary_factor ?? 1) !== 1,
      `partial_rotary_factor ${config.partial_rotary_factor}`,
    ],
  ];
  for (const [found, what] of refused) {
    if (found) throw new UnsupportedError(`${path}: ${what} is not supported`);
  }
}

/**
 * config.json of the configuration. One read from a GGUF file is spelled out in transformers 5's words.
 * @throws UnsupportedError for what only GGUF files can say
 */
export function llamaConfigJson(config: LlamaConfig, dtype: string): Record<string, unknown> {
  if (config.rope.type === 'factors' || config.qkvBias !== config.outputBias) {
    const what =
      config.rope.type === 'factors' ? 'rope_freqs.weight' : 'a bias on some projections only';
    throw new UnsupportedError(
      `the model was read from a GGUF file with ${what}, which config.json cannot say`,
    );
  }
  const { torch_dtype: _, ...source } = config.source;
  const json: Record<string, unknown> = {
    ...source,
    architectures: ['LlamaForCausalLM'],
    model_type: 'llama',
    dtype,
    tie_word_embeddings: config.tied,
  };
  return Object.fromEntries(Object.entries(json).sort(([a], [b]) => (a < b ? -1 : 1)));
}
