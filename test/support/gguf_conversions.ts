/** Parts of llama.cpp's conversion of checkpoints that families share: names, metadata, changes of tensors. */
import type { GoldenArray } from './golden.ts';
import type { GgufValue } from './write_gguf.ts';

export type Json = Record<string, unknown>;

export interface Conversion {
  readonly architecture: string;
  /** Path of a module below its layer (such as `self_attn.q_proj`) -> its name below `blk.N.`. */
  readonly block: Readonly<Record<string, string>>;
  readonly top: Readonly<Record<string, string>>;
  /** Metadata with the prefix of the architecture, in addition to the sizes. */
  readonly metadata: (config: Json) => Record<string, GgufValue>;
  /** Metadata of the sizes. Default: that of decoders. */
  readonly sizes?: (config: Json) => Record<string, GgufValue>;
  /** Name in the file of a module that has no regular name, without weight or bias. */
  readonly name?: (hf: string) => string;
  readonly change?: (hf: string, array: GoldenArray, config: Json) => GoldenArray;
  /** Tensors that the converter leaves out. */
  readonly dropped?: RegExp;
  /** Metadata of the tokenizer. Default: that of gpt2. */
  readonly vocabulary?: (config: Json) => Record<string, GgufValue>;
  /** Keys of the golden configuration that the file cannot contain, with the values that a reader has instead. */
  readonly unsaid?: Json;
}

export const kDecoderTop = {
  'model.embed_tokens': 'token_embd',
  'model.norm': 'output_norm',
  lm_head: 'output',
};
export const kDecoderBlock = {
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
export const kSandwichBlock = {
  ...kDecoderBlock,
  post_attention_layernorm: 'post_attention_norm',
  pre_feedforward_layernorm: 'ffn_norm',
  post_feedforward_layernorm: 'post_ffw_norm',
};
export const ropeOf = (config: Json): Json => config.rope_parameters as Json;
export const thetaOf = (config: Json): Record<string, GgufValue> => ({
  'rope.freq_base': { f32: ropeOf(config).rope_theta as number },
});
export const decoder = { top: kDecoderTop, block: kDecoderBlock, metadata: thetaOf };

/** Adds 1 to the weights of Gemma's norms, as the file stores them. */
export const withOne = (hf: string, array: GoldenArray): GoldenArray =>
  hf.endsWith('norm.weight')
    ? { ...array, data: Float32Array.from(array.data as Float32Array, (w) => w + 1) }
    : array;

export function transposed({ shape, data }: GoldenArray): GoldenArray {
  const [rows, columns] = shape as [number, number];
  const swapped = new Float32Array(rows * columns);
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) swapped[j * rows + i] = data[i * columns + j] as number;
  }
  return { shape: [columns, rows], data: swapped };
}

/**
 * The rows of q and k in the order for llama.cpp's rope: the two channels of a rotation are adjacent, while in transformers they
 * are half a head apart.
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
export const llama = { ...decoder, architecture: 'llama', change: interleaved };
