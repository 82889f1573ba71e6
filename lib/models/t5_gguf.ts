/**
 * GGUF files of the t5 architecture. They lack the largest distance of relative positions (llama.cpp assumes 128, the default) and
 * the kind of the mlp, which is gated if the file has a gate.
 */
import { type GgufKeys, type GgufNames, type GgufTable, tokenIds, vocabSize } from './gguf.ts';

const kAttention = (layer: string, prefix: string): Record<string, string> =>
  Object.fromEntries(
    ['q', 'k', 'v', 'o'].map((name) => [`${prefix}attn_${name}`, `${layer}.${name}`]),
  );

function mlp(layer: string, gated: boolean): Record<string, string> {
  const part = (name: string): string => `${layer}.DenseReluDense.${name}`;
  return {
    ffn_norm: `${layer}.layer_norm`,
    ...(gated ? { ffn_gate: part('wi_0'), ffn_up: part('wi_1') } : { ffn_up: part('wi') }),
    ffn_down: part('wo'),
  };
}

const kSelf = {
  attn_norm: 'layer.0.layer_norm',
  attn_rel_b: 'layer.0.SelfAttention.relative_attention_bias',
  ...kAttention('layer.0.SelfAttention', ''),
};

const isGated = (keys: GgufKeys): boolean => keys.has('enc.blk.0.ffn_gate.weight');

function names(keys: GgufKeys): readonly GgufNames[] {
  const gated = isGated(keys);
  return [
    {
      top: {
        'token_embd.weight': 'shared.weight',
        'enc.output_norm.weight': 'encoder.final_layer_norm.weight',
        'dec.output_norm.weight': 'decoder.final_layer_norm.weight',
        'output.weight': 'lm_head.weight',
      },
      blocks: 'enc.blk',
      layers: 'encoder.block',
      block: { ...kSelf, ...mlp('layer.1', gated) },
    },
    {
      top: {},
      blocks: 'dec.blk',
      layers: 'decoder.block',
      block: {
        ...kSelf,
        cross_attn_norm: 'layer.1.layer_norm',
        cross_attn_rel_b: 'layer.1.EncDecAttention.relative_attention_bias',
        ...kAttention('layer.1.EncDecAttention', 'cross_'),
        ...mlp('layer.2', gated),
      },
    },
  ];
}

export const t5Gguf: GgufTable = {
  architecture: 't5',
  names,
  keys: [
    'attention.layer_norm_epsilon',
    'attention.relative_buckets_count',
    'decoder_block_count',
    'decoder_start_token_id',
  ],
  configJson(keys) {
    const hidden = keys.count('embedding_length');
    const heads = keys.count('attention.head_count');
    const headDim = keys.number('attention.key_length') ?? hidden / heads;
    keys.expect('attention.value_length', headDim, "the head's");
    const start = keys.number('decoder_start_token_id');
    const gated = isGated(keys);
    return {
      vocab_size: vocabSize(keys.file),
      d_model: hidden,
      d_kv: headDim,
      d_ff: keys.required('feed_forward_length'),
      num_layers: keys.required('block_count'),
      num_decoder_layers: keys.number('decoder_block_count') ?? keys.required('block_count'),
      num_heads: heads,
      relative_attention_num_buckets: keys.required('attention.relative_buckets_count'),
      layer_norm_epsilon: keys.required('attention.layer_norm_rms_epsilon'),
      feed_forward_proj: gated ? 'gated-gelu' : 'relu',
      // v1.0 is tied, and files of it may hold the embedding a second time.
      tie_word_embeddings: !gated || !keys.has('output.weight'),
      ...(start !== undefined && { decoder_start_token_id: start }),
      ...tokenIds(keys.file),
    };
  },
};
