/** Metadata and tensors of a GGUF file made from a model of a Hugging Face folder. Keys: llama.cpp's gguf-py/gguf/constants.py. */
import { basename } from 'node:path';
import { UnsupportedError } from '../errors.ts';
import type { GgufTypedValue } from '../io/gguf_writer.ts';
import {
  type DecoderConfig,
  DecoderLM,
  type GgufLayout,
  type Model,
  type RopeConfig,
  yarnAttentionFactor,
} from '../models/index.ts';
import type { Tokenizer } from '../text/tokenizer.ts';

/** Families whose configuration is written; the others need a GGUF file as their base. */
const kFamilies: readonly string[] = ['llama', 'mistral', 'qwen2', 'qwen3'];

/** A tensor of the file, without its type. */
interface FolderTensor {
  readonly name: string;
  readonly hf: string | null;
  readonly shape: readonly number[];
  readonly values?: Float32Array;
}

const kAdvice = 'give the GGUF file of the model as the base (--model), whose metadata are kept';

const u32 = (value: number): GgufTypedValue => ({ type: 'UINT32', value });
const f32 = (value: number): GgufTypedValue => ({ type: 'FLOAT32', value });
const text = (value: string): GgufTypedValue => ({ type: 'STRING', value });

/**
 * The metadata of a model: its configuration and its vocabulary.
 * @throws UnsupportedError for a family, a rotary embedding or a tokenizer that cannot be written
 */
export function folderEntries(
  model: Model,
  tokenizer: Tokenizer,
  { layout, warn }: { layout: GgufLayout; warn: (message: string) => void },
): ReadonlyMap<string, GgufTypedValue> {
  const { config } = checkedModel(model);
  const { architecture } = layout;
  const named = Object.entries(configEntries(config)).map(
    ([key, value]) => [`${architecture}.${key}`, value] as const,
  );
  const windows = config.layers.map(({ window }) => window).filter((window) => window > 0);
  if (windows.length > 0 && Math.min(...windows) < config.maxPositions) {
    warn(
      `llama.cpp has no attention window for the architecture ${architecture}: beyond ${Math.min(...windows)} tokens its outputs ` +
        'differ from those of this model',
    );
  }
  return new Map<string, GgufTypedValue>([
    ['general.architecture', text(architecture)],
    ['general.type', text('model')],
    ['general.name', text(basename(model.nameOrPath))],
    ...named,
    ...tokenizer.ggufMetadata(config.vocabSize),
  ]);
}

function checkedModel(model: Model): DecoderLM {
  if (model instanceof DecoderLM && kFamilies.includes(model.modelType)) return model;
  throw new UnsupportedError(
    `gguf: from a Hugging Face folder, a file is written for ${kFamilies.join(', ')}, not for ${model.modelType}; ${kAdvice}`,
  );
}

function configEntries(config: DecoderConfig): Record<string, GgufTypedValue> {
  return {
    vocab_size: u32(config.vocabSize),
    context_length: u32(config.maxPositions),
    embedding_length: u32(config.hiddenSize),
    block_count: u32(config.numLayers),
    feed_forward_length: u32(config.intermediateSize),
    'attention.head_count': u32(config.numHeads),
    'attention.head_count_kv': u32(config.numKeyValueHeads),
    'attention.key_length': u32(config.headDim),
    'attention.value_length': u32(config.headDim),
    'attention.layer_norm_rms_epsilon': f32(config.norm.eps as number),
    ...ropeEntries(config.ropes[0] as RopeConfig),
  };
}

function ropeEntries(rope: RopeConfig): Record<string, GgufTypedValue> {
  const common = { 'rope.freq_base': f32(rope.theta), 'rope.dimension_count': u32(rope.dim) };
  switch (rope.type) {
    case 'default':
    case 'llama3': // rope_freqs.weight
    case 'factors':
      return common;
    case 'linear':
      return {
        ...common,
        'rope.scaling.type': text('linear'),
        'rope.scaling.factor': f32(rope.factor),
      };
    case 'yarn':
      return { ...common, ...yarnEntries(rope) };
    case 'dynamic':
      throw new UnsupportedError(
        'gguf: the rotary embedding is of type dynamic, whose frequencies change with the length of the text, and llama.cpp has no ' +
          'such type; export to safetensors, or remove rope_scaling from config.json for texts within the original context',
      );
  }
}

/** YaRN's constants in llama.cpp, which reads no others for these architectures. */
const kBetas = { fast: 32, slow: 1 };

/**
 * The entries of YaRN. llama.cpp multiplies cos and sin by attn_factor and by 0.1 ln(factor) + 1, which is the default of
 * transformers' attention_factor.
 * @throws UnsupportedError for a ramp that llama.cpp does not have
 */
function yarnEntries(rope: RopeConfig & { type: 'yarn' }): Record<string, GgufTypedValue> {
  const { factor, originalMaxPositions, attentionFactor } = rope;
  const { betaFast, betaSlow, truncate } = rope;
  if (betaFast !== kBetas.fast || betaSlow !== kBetas.slow || !truncate) {
    throw new UnsupportedError(
      `gguf: the rotary embedding is of type yarn with beta_fast ${betaFast}, beta_slow ${betaSlow} and truncate ${truncate}, and ` +
        `llama.cpp has ${kBetas.fast}, ${kBetas.slow} and true for this architecture; export to safetensors`,
    );
  }
  const own = attentionFactor / yarnAttentionFactor(factor);
  return {
    'rope.scaling.type': text('yarn'),
    'rope.scaling.factor': f32(factor),
    'rope.scaling.original_context_length': u32(originalMaxPositions),
    ...(Math.abs(own - 1) > 1e-6 && { 'rope.scaling.attn_factor': f32(own) }),
  };
}

/** The tensors in the order of the model's parameters. @throws UnsupportedError for one that the architecture has not */
export function folderTensors(model: Model, layout: GgufLayout): readonly FolderTensor[] {
  const { config } = checkedModel(model);
  const weights = Array.from(model.namedParameters(), ([hf, { shape }]) => {
    const name = layout.nameOf(hf);
    if (name !== null) return { name, hf, shape };
    throw new UnsupportedError(
      `gguf: ${hf} has no tensor in the architecture ${layout.architecture}; ${kAdvice}`,
    );
  });
  const factors = ropeFactors(config.ropes[0] as RopeConfig);
  if (factors === null) return weights;
  const values = Float32Array.from(factors);
  return [...weights, { name: 'rope_freqs.weight', hf: null, shape: [values.length], values }];
}

/** The number that each frequency is divided by, in llama.cpp's form of Llama 3's scaling; null: the embedding has none. */
function ropeFactors(rope: RopeConfig): readonly number[] | null {
  if (rope.type === 'factors') return rope.factors;
  if (rope.type !== 'llama3') return null;
  const { theta, dim, factor, lowFreqFactor: low, highFreqFactor: high } = rope;
  return Array.from({ length: dim / 2 }, (_, i) => {
    const wavelength = 2 * Math.PI * theta ** ((2 * i) / dim);
    const turns = rope.originalMaxPositions / wavelength;
    if (turns > high) return 1;
    if (turns < low) return factor;
    const smooth = (turns - low) / (high - low);
    return 1 / ((1 - smooth) / factor + smooth);
  });
}
