/** The golden checkpoints as llama.cpp's converter would write them: names, metadata, and changes of tensors. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { kDecoders } from './decoder_families.ts';
import { fixturePath } from './fixtures.ts';
import type { Conversion, Json } from './gguf_conversions.ts';
import { type GoldenArray, goldenArrays } from './golden.ts';
import { type GgufTensor, type GgufValue, writeGguf } from './write_gguf.ts';

/** Names of T5's modules. encoder.block.N.layer.I has the attention, in the decoder then that to the encoder, and the mlp. */
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
/** Conversions of encoder-decoders, which have a loader of their own. */
export const kSeq2SeqConversions: Readonly<Record<string, Conversion>> = { t5, 't5-v1.1': t5 };

/** Modules of bert and roberta without their prefix, and of distilbert, whose layers have other names. */
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
  // The converter names the last layer of a head with label names classifier.out_proj.
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

/** The rows of the position table after that of the padding id. */
function behindPadding(hf: string, array: GoldenArray, config: Json): GoldenArray {
  if (!hf.endsWith('position_embeddings.weight')) return array;
  const [rows, width] = array.shape as [number, number];
  const cut = (config.pad_token_id as number) + 1;
  return { shape: [rows - cut, width], data: array.data.slice(cut * width) };
}

/** Conversions of encoders, which are one architecture in llama.cpp. */
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

/** Conversions of decoders. */
export const kConversions: Readonly<Record<string, Conversion>> = Object.fromEntries(
  Object.entries(kDecoders).flatMap(([name, { gguf }]) => (gguf ? [[name, gguf]] : [])),
);

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
 * Writes a golden checkpoint as a GGUF file. `extra` is additional metadata with the prefix of the architecture, `skip` matches
 * tensors that are left out, and `vocabulary` replaces metadata of the tokenizer.
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
