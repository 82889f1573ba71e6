/** The golden checkpoints as llama.cpp's converter would write them: names, metadata, and what it changes in the tensors. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fixturePath } from './fixtures.ts';
import { type GoldenArray, goldenArrays } from './golden.ts';
import { type GgufTensor, type GgufValue, writeGguf } from './write_gguf.ts';

type Json = Record<string, unknown>;

interface Conversion {
  readonly architecture: string;
  /** Last part of a module's path below its layer (`self_attn.q_proj`), and the name in `blk.N.`. */
  readonly block: Readonly<Record<string, string>>;
  readonly top: Readonly<Record<string, string>>;
  /** Metadata below the architecture beside the sizes. */
  readonly metadata: (config: Json) => Record<string, GgufValue>;
  /** Default: those of decoders. */
  readonly sizes?: (config: Json) => Record<string, GgufValue>;
  /** Name of a module that is not of the usual form, without weight or bias. */
  readonly name?: (hf: string) => string;
  readonly change?: (hf: string, array: GoldenArray, config: Json) => GoldenArray;
  /** Tensors that the converter leaves out. */
  readonly dropped?: RegExp;
  /** Metadata of the tokenizer, instead of gpt2's. */
  readonly vocabulary?: (config: Json) => Record<string, GgufValue>;
}

const kDecoderTop = {
  'model.embed_tokens': 'token_embd',
  'model.norm': 'output_norm',
  lm_head: 'output',
};
const kDecoderBlock = {
  input_layernorm: 'attn_norm',
  'self_attn.q_proj': 'attn_q',
  'self_attn.k_proj': 'attn_k',
  'self_attn.v_proj': 'attn_v',
  'self_attn.o_proj': 'attn_output',
  'self_attn.q_norm': 'attn_q_norm',
  'self_attn.k_norm': 'attn_k_norm',
  post_attention_layernorm: 'ffn_norm',
  'mlp.gate_proj': 'ffn_gate',
  'mlp.up_proj': 'ffn_up',
  'mlp.down_proj': 'ffn_down',
};
const kSandwichBlock = {
  ...kDecoderBlock,
  post_attention_layernorm: 'post_attention_norm',
  pre_feedforward_layernorm: 'ffn_norm',
  post_feedforward_layernorm: 'post_ffw_norm',
};
const ropeOf = (config: Json): Json => config.rope_parameters as Json;
const thetaOf = (config: Json): Record<string, GgufValue> => ({
  'rope.freq_base': { f32: ropeOf(config).rope_theta as number },
});
const decoder = { top: kDecoderTop, block: kDecoderBlock, metadata: thetaOf };

/** Gemma's norms are written with their 1. */
const withOne = (hf: string, array: GoldenArray): GoldenArray =>
  hf.endsWith('norm.weight')
    ? { ...array, data: Float32Array.from(array.data as Float32Array, (w) => w + 1) }
    : array;

function transposed({ shape, data }: GoldenArray): GoldenArray {
  const [rows, columns] = shape as [number, number];
  const swapped = new Float32Array(rows * columns);
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) swapped[j * rows + i] = data[i * columns + j] as number;
  }
  return { shape: [columns, rows], data: swapped };
}

/**
 * Rows of q and k as llama.cpp's rope takes them: the two channels that turn together lie side by side, where transformers has
 * them half a head apart.
 */
function interleaved(hf: string, array: GoldenArray, config: Json): GoldenArray {
  const [, which] = /\.([qk])_proj\.(?:weight|bias)$/.exec(hf) ?? [];
  if (which === undefined) return array;
  const heads = Number(which === 'q' ? config.num_attention_heads : config.num_key_value_heads);
  const rows = array.shape[0] as number;
  const [head, width] = [rows / heads, array.data.length / rows];
  const data = new Float32Array(array.data.length);
  for (let row = 0; row < rows; row++) {
    const [h, i] = [Math.floor(row / head), row % head];
    const from = h * head + (i % 2) * (head / 2) + Math.floor(i / 2);
    for (let k = 0; k < width; k++) data[row * width + k] = Number(array.data[from * width + k]);
  }
  return { ...array, data };
}
const llama = { ...decoder, architecture: 'llama', change: interleaved };

/** encoder.block.N.layer.I.<module>: attention, in the decoder attention to the encoder, and the mlp. */
function t5Name(hf: string): string {
  const tops: Record<string, string> = {
    shared: 'token_embd',
    lm_head: 'output',
    'encoder.final_layer_norm': 'enc.output_norm',
    'decoder.final_layer_norm': 'dec.output_norm',
  };
  const parts = /^(enc|dec)oder\.block\.(\d+)\.layer\.(\d)\.(?:\w+\.)?(\w+)$/.exec(hf);
  if (parts === null) return tops[hf] as string;
  const [, side, block, layer, module] = parts as unknown as [
    string,
    string,
    string,
    string,
    string,
  ];
  const last = layer === (side === 'enc' ? '1' : '2');
  const attention = layer === '0' ? 'attn' : 'cross_attn';
  const names: Record<string, string> = last
    ? { layer_norm: 'ffn_norm', wi: 'ffn_up', wi_0: 'ffn_gate', wi_1: 'ffn_up', wo: 'ffn_down' }
    : {
        layer_norm: `${attention}_norm`,
        relative_attention_bias: `${attention}_rel_b`,
        ...Object.fromEntries([...'qkvo'].map((name) => [name, `${attention}_${name}`])),
      };
  return `${side}.blk.${block}.${names[module]}`;
}

function t5Sizes(config: Json): Record<string, GgufValue> {
  const get = (key: string): number => config[key] as number;
  const eps = { f32: get('layer_norm_epsilon') };
  return {
    context_length: 512,
    embedding_length: get('d_model'),
    feed_forward_length: get('d_ff'),
    block_count: get('num_layers'),
    decoder_block_count: get('num_decoder_layers'),
    'attention.head_count': get('num_heads'),
    'attention.key_length': get('d_kv'),
    'attention.value_length': get('d_kv'),
    'attention.layer_norm_epsilon': eps,
    'attention.relative_buckets_count': get('relative_attention_num_buckets'),
    'attention.layer_norm_rms_epsilon': eps,
    decoder_start_token_id: get('decoder_start_token_id'),
  };
}
const t5 = {
  architecture: 't5',
  top: {},
  block: {},
  name: t5Name,
  sizes: t5Sizes,
  metadata: () => ({}),
};
/** Encoder-decoders, which have a loader of their own. */
export const kSeq2SeqConversions: Readonly<Record<string, Conversion>> = { t5, 't5-v1.1': t5 };

/** Modules of bert and roberta below their prefix, and of distilbert, whose layers have other names. */
const kBertBlock: Readonly<Record<string, string>> = {
  'attention.self.query': 'attn_q',
  'attention.self.key': 'attn_k',
  'attention.self.value': 'attn_v',
  'attention.output.dense': 'attn_output',
  'attention.output.LayerNorm': 'attn_output_norm',
  'intermediate.dense': 'ffn_up',
  'output.dense': 'ffn_down',
  'output.LayerNorm': 'layer_output_norm',
  'attention.q_lin': 'attn_q',
  'attention.k_lin': 'attn_k',
  'attention.v_lin': 'attn_v',
  'attention.out_lin': 'attn_output',
  sa_layer_norm: 'attn_output_norm',
  'ffn.lin1': 'ffn_up',
  'ffn.lin2': 'ffn_down',
  output_layer_norm: 'layer_output_norm',
};
const kBertTop: Readonly<Record<string, string>> = {
  'embeddings.word_embeddings': 'token_embd',
  'embeddings.position_embeddings': 'position_embd',
  'embeddings.token_type_embeddings': 'token_types',
  'embeddings.LayerNorm': 'token_embd_norm',
  // The last layer of a head whose labels have names of their own is renamed to classifier.out_proj.
  classifier: 'cls.output',
  'classifier.dense': 'cls',
  'classifier.out_proj': 'cls.output',
  pre_classifier: 'cls',
};

function bertName(hf: string): string {
  const bare = hf.replace(/^(?:bert|roberta|distilbert)\./, '');
  const [, layer, rest] = /^(?:encoder|transformer)\.layer\.(\d+)\.(.*)$/.exec(bare) ?? [];
  const name = layer === undefined ? kBertTop[bare] : kBertBlock[rest as string];
  if (name === undefined) throw new Error(`no GGUF name for ${hf}`);
  return layer === undefined ? name : `blk.${layer}.${name}`;
}

function bertSizes(config: Json): Record<string, GgufValue> {
  const get = (...keys: string[]): number =>
    Number(keys.map((key) => config[key]).find((value) => typeof value === 'number'));
  const cut = config.model_type === 'roberta' ? get('pad_token_id') + 1 : 0;
  return {
    block_count: get('num_hidden_layers', 'n_layers'),
    context_length: get('max_position_embeddings') - cut,
    embedding_length: get('hidden_size', 'dim'),
    feed_forward_length: get('intermediate_size', 'hidden_dim'),
    'attention.head_count': get('num_attention_heads', 'n_heads'),
    'attention.layer_norm_epsilon': {
      f32: config.model_type === 'distilbert' ? 1e-12 : get('layer_norm_eps'),
    },
    'attention.causal': false,
  };
}

const bertLike = {
  architecture: 'bert',
  top: {},
  block: {},
  name: bertName,
  sizes: bertSizes,
  metadata: () => ({}),
  dropped: /\.pooler\./,
  vocabulary: (config: Json) => ({
    'tokenizer.ggml.model': 'bert',
    'tokenizer.ggml.pre': 'jina-v2-en',
    'tokenizer.ggml.token_type_count': (config.type_vocab_size as number | undefined) ?? 1,
    'tokenizer.ggml.padding_token_id': config.pad_token_id as number,
  }),
};

/** The rows of the position table behind the padding id's. */
function behindPadding(hf: string, array: GoldenArray, config: Json): GoldenArray {
  if (!hf.endsWith('position_embeddings.weight')) return array;
  const [rows, width] = array.shape as [number, number];
  const cut = (config.pad_token_id as number) + 1;
  return { shape: [rows - cut, width], data: array.data.slice(cut * width) };
}

/** Encoders, which llama.cpp has as one architecture. */
export const kEncoderConversions: Readonly<Record<string, Conversion>> = {
  bert: bertLike,
  distilbert: bertLike,
  roberta: {
    ...bertLike,
    change: behindPadding,
    vocabulary: (config) => ({
      ...bertLike.vocabulary(config),
      'tokenizer.ggml.model': 'gpt2',
      'tokenizer.ggml.pre': 'roberta-bpe',
      'tokenizer.ggml.bos_token_id': config.bos_token_id as number,
      'tokenizer.ggml.eos_token_id': config.eos_token_id as number,
    }),
  },
};

export const kConversions: Readonly<Record<string, Conversion>> = {
  'llama-untied-gqa': llama,
  'llama-biases': llama,
  mistral: llama,
  gemma: { ...decoder, architecture: 'gemma', metadata: () => ({}), change: withOne },
  gemma2: {
    architecture: 'gemma2',
    top: kDecoderTop,
    block: kSandwichBlock,
    metadata: (config) => ({
      attn_logit_softcapping: { f32: config.attn_logit_softcapping as number },
      final_logit_softcapping: { f32: config.final_logit_softcapping as number },
      'attention.sliding_window': config.sliding_window as number,
    }),
    change: withOne,
  },
  'gemma3-text': {
    architecture: 'gemma3',
    top: kDecoderTop,
    block: kSandwichBlock,
    metadata: (config) => ({
      'attention.sliding_window': config.sliding_window as number,
      'rope.freq_base': { f32: (ropeOf(config).full_attention as Json).rope_theta as number },
      'rope.scaling.type': 'linear',
      'rope.scaling.factor': { f32: (ropeOf(config).full_attention as Json).factor as number },
    }),
    change: withOne,
  },
  qwen2: { ...decoder, architecture: 'qwen2' },
  qwen3: { ...decoder, architecture: 'qwen3' },
  phi3: {
    architecture: 'phi3',
    top: kDecoderTop,
    block: { ...kDecoderBlock, 'self_attn.qkv_proj': 'attn_qkv', 'mlp.gate_up_proj': 'ffn_up' },
    metadata: (config) => ({
      ...thetaOf(config),
      'rope.dimension_count': 6,
      'rope.scaling.original_context_length': config.original_max_position_embeddings as number,
      'attention.sliding_window': 0,
    }),
  },
  olmo2: {
    ...decoder,
    architecture: 'olmo2',
    block: {
      ...kDecoderBlock,
      post_attention_layernorm: 'post_attention_norm',
      post_feedforward_layernorm: 'post_ffw_norm',
    },
  },
  gpt2: {
    architecture: 'gpt2',
    top: {
      'transformer.wte': 'token_embd',
      'transformer.wpe': 'position_embd',
      'transformer.ln_f': 'output_norm',
    },
    block: {
      ln_1: 'attn_norm',
      'attn.c_attn': 'attn_qkv',
      'attn.c_proj': 'attn_output',
      ln_2: 'ffn_norm',
      'mlp.c_fc': 'ffn_up',
      'mlp.c_proj': 'ffn_down',
    },
    metadata: () => ({}),
    change: (hf, array) => (/\.c_\w+\.weight$/.test(hf) ? transposed(array) : array),
  },
};

function sizes(config: Json): Record<string, GgufValue> {
  const get = (...keys: string[]): number =>
    Number(keys.map((key) => config[key]).find((value) => typeof value === 'number'));
  const heads = get('num_attention_heads', 'n_head');
  const hidden = get('hidden_size', 'n_embd');
  const rms = config.rms_norm_eps !== undefined;
  return {
    context_length: get('max_position_embeddings', 'n_positions'),
    embedding_length: hidden,
    block_count: get('num_hidden_layers', 'n_layer'),
    feed_forward_length: config.n_embd === undefined ? get('intermediate_size') : 4 * hidden,
    'attention.head_count': heads,
    ...(rms && { 'attention.head_count_kv': get('num_key_value_heads') }),
    [rms ? 'attention.layer_norm_rms_epsilon' : 'attention.layer_norm_epsilon']: {
      f32: get('rms_norm_eps', 'layer_norm_epsilon'),
    },
    ...(typeof config.head_dim === 'number' && {
      'attention.key_length': config.head_dim,
      'attention.value_length': config.head_dim,
    }),
  };
}

interface GgufChanges {
  readonly skip?: RegExp;
  readonly vocabulary?: Record<string, GgufValue>;
}

function ggufName(hf: string, { top, block, name: own }: Conversion): string {
  const [, module, kind] = /^(.*)\.(weight|bias)$/.exec(hf) as unknown as [string, string, string];
  if (own !== undefined) return `${own(module)}.${kind}`;
  const [, layer, rest] = /^(?:model\.layers|transformer\.h)\.(\d+)\.(.*)$/.exec(module) ?? [];
  const name = layer === undefined ? top[module] : `blk.${layer}.${block[rest as string]}`;
  if (name === undefined) throw new Error(`no GGUF name for ${hf}`);
  return `${name}.${kind}`;
}

/**
 * Writes a golden checkpoint as a GGUF file. `extra` is metadata below the architecture, `skip` names tensors that the
 * checkpoint is to lack, `vocabulary` is metadata of the tokenizer that differs from the conversion's.
 */
export function writeGoldenGguf(
  path: string,
  family: string,
  extra: Record<string, GgufValue> = {},
  { skip, vocabulary = {} }: GgufChanges = {},
): void {
  const conversion = { ...kConversions, ...kSeq2SeqConversions, ...kEncoderConversions }[
    family
  ] as Conversion;
  const { architecture, metadata, change = (_: string, array: GoldenArray) => array } = conversion;
  const folder = fixturePath(`architectures/${family}/model`);
  const config = JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8')) as Json;
  const below = { ...(conversion.sizes ?? sizes)(config), ...metadata(config), ...extra };
  const held = [...goldenArrays(join(folder, 'model.safetensors'))].filter(
    ([hf]) => !conversion.dropped?.test(hf) && !skip?.test(hf),
  );
  const tensors: GgufTensor[] = held.map(([hf, array]) => {
    const { shape, data } = change(hf, array, config);
    return { name: ggufName(hf, conversion), shape, data: data as Float32Array };
  });
  const named = Object.entries(below).map(([key, value]) => [`${architecture}.${key}`, value]);
  const tokens = Array.from({ length: config.vocab_size as number }, (_, id) => `<${id}>`);
  const all: Record<string, GgufValue> = {
    'general.architecture': architecture,
    ...Object.fromEntries(named),
    'tokenizer.ggml.model': 'gpt2',
    'tokenizer.ggml.pre': 'gpt-2',
    'tokenizer.ggml.tokens': tokens,
    'tokenizer.ggml.token_type': tokens.map(() => 1),
    'tokenizer.ggml.merges': ['< 0', '< 1'],
    'tokenizer.ggml.bos_token_id': 1,
    'tokenizer.ggml.eos_token_id': 2,
    ...conversion.vocabulary?.(config),
    ...vocabulary,
  };
  writeGguf(path, all, tensors);
}
