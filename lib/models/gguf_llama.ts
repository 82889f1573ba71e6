/**
 * A GGUF file of the llama architecture, seen as its Hugging Face twin: metadata as config.json, tensors under HF's names,
 * the rows of q and k back in HF's order. Names: llama.cpp's gguf-py/gguf/constants.py.
 */
import { FormatError, UnsupportedError } from '../errors.ts';
import type { GgufFile } from '../io/index.ts';
import { noGrad, type Tensor } from '../tensor.ts';
import type { ConfigOptions } from './config_keys.ts';
import { type LlamaConfig, llamaConfig } from './llama_config.ts';
import type { WeightReadOptions, WeightSource } from './weights.ts';

const kTop: Readonly<Record<string, string>> = {
  'token_embd.weight': 'model.embed_tokens.weight',
  'output_norm.weight': 'model.norm.weight',
  'output.weight': 'lm_head.weight',
};
const kBlock: Readonly<Record<string, string>> = {
  attn_norm: 'input_layernorm',
  attn_q: 'self_attn.q_proj',
  attn_k: 'self_attn.k_proj',
  attn_v: 'self_attn.v_proj',
  attn_output: 'self_attn.o_proj',
  ffn_norm: 'post_attention_layernorm',
  ffn_gate: 'mlp.gate_proj',
  ffn_up: 'mlp.up_proj',
  ffn_down: 'mlp.down_proj',
};
/** Factors of the rope frequencies: part of the configuration here. */
const kRopeFactors = 'rope_freqs.weight';

/** Keys under `llama.` that are read, or that say nothing about the mathematics. */
const kKnownKeys = new Set(
  `vocab_size context_length embedding_length block_count feed_forward_length attention.head_count
   attention.head_count_kv attention.layer_norm_rms_epsilon attention.key_length attention.value_length
   rope.dimension_count rope.freq_base rope.scaling.type rope.scaling.factor rope.scaling.original_context_length
   rope.scaling.finetuned tensor_data_layout`.split(/\s+/),
);

/** The HF name of a GGUF tensor; itself where there is none. */
export function hfName(name: string): string {
  const block = /^blk\.(\d+)\.(\w+)\.(weight|bias)$/.exec(name);
  const module = kBlock[block?.[2] ?? ''];
  if (block === null || module === undefined) return kTop[name] ?? name;
  return `model.layers.${block[1]}.${module}.${block[3]}`;
}

/** The values of one architecture's keys, each checked for its type. */
class Keys {
  constructor(
    private readonly file: GgufFile,
    private readonly prefix: string,
  ) {}

  number(key: string): number | undefined {
    const value = this.file.metadata.get(this.prefix + key);
    // Lists with one value a layer are what hybrid models use; equal ones are one number.
    const single = Array.isArray(value) && new Set(value).size === 1 ? value[0] : value;
    if (single === undefined || typeof single === 'number') return single;
    throw this.error(
      key,
      `must be one number, got ${JSON.stringify(value, (_, v) => (typeof v === 'bigint' ? String(v) : v))}`,
    );
  }

  required(key: string): number {
    const value = this.number(key);
    if (value === undefined) throw this.error(key, 'is missing from the metadata');
    return value;
  }

  text(key: string): string | undefined {
    const value = this.file.metadata.get(this.prefix + key);
    if (value === undefined || typeof value === 'string') return value;
    throw this.error(key, 'must be a string');
  }

  error(key: string, what: string): FormatError {
    const { path } = this.file;
    return new FormatError(`${path}: ${this.prefix}${key} ${what}`, { path });
  }
}

/** @throws FormatError, UnsupportedError as llamaConfig does, naming the file's own keys */
export function ggufLlamaConfig(
  file: GgufFile,
  factors: readonly number[] | null,
  { ignoreKeys = [] }: ConfigOptions,
): LlamaConfig {
  const keys = new Keys(file, 'llama.');
  refuseUnknown(file, ignoreKeys);
  const heads = keys.required('attention.head_count');
  const headDim = keys.number('attention.key_length') ?? keys.required('embedding_length') / heads;
  for (const key of ['attention.value_length', 'rope.dimension_count']) {
    if ((keys.number(key) ?? headDim) !== headDim) {
      throw new UnsupportedError(
        `${file.path}: llama.${key} ${keys.number(key)} differs from the head's ${headDim}`,
      );
    }
  }
  const embedding = file.tensors.get('token_embd.weight');
  if (embedding === undefined) {
    throw new FormatError(`${file.path}: token_embd.weight is missing`, { path: file.path });
  }
  const json = {
    architectures: ['LlamaForCausalLM'],
    model_type: 'llama',
    vocab_size: embedding.shape[0] as number,
    hidden_size: keys.required('embedding_length'),
    intermediate_size: keys.required('feed_forward_length'),
    num_hidden_layers: keys.required('block_count'),
    num_attention_heads: heads,
    num_key_value_heads: keys.number('attention.head_count_kv') ?? heads,
    head_dim: headDim,
    hidden_act: 'silu',
    max_position_embeddings: keys.number('context_length') ?? 2048,
    rms_norm_eps: keys.required('attention.layer_norm_rms_epsilon'),
    rope_parameters: ropeParameters(keys, file.path),
    attention_bias: file.tensors.has('blk.0.attn_q.bias'),
    mlp_bias: file.tensors.has('blk.0.ffn_gate.bias'),
    tie_word_embeddings: !file.tensors.has('output.weight'),
    ...tokenIds(file),
  };
  const config = llamaConfig(json, { path: file.path });
  const rope = factors === null ? config.rope : ropeWithFactors(config, factors, file.path);
  return { ...config, rope, outputBias: file.tensors.has('blk.0.attn_output.bias') };
}

function refuseUnknown(file: GgufFile, ignoreKeys: readonly string[]): void {
  const unknown = [...file.metadata.keys()].filter(
    (key) =>
      key.startsWith('llama.') &&
      !kKnownKeys.has(key.slice('llama.'.length)) &&
      !ignoreKeys.includes(key),
  );
  if (unknown.length > 0) {
    throw new UnsupportedError(
      `${file.path}: ${unknown.join(', ')} not understood and may change the mathematics; if you know better, pass ` +
        'ignoreKeys',
    );
  }
}

function ropeParameters(keys: Keys, path: string): Record<string, unknown> {
  const rope_theta = keys.number('rope.freq_base') ?? 10_000;
  const type = keys.text('rope.scaling.type') ?? 'none';
  if (type === 'none') return { rope_type: 'default', rope_theta };
  const factor = keys.required('rope.scaling.factor');
  if (type === 'linear') return { rope_type: 'linear', rope_theta, factor };
  if (type !== 'yarn')
    throw new UnsupportedError(`${path}: llama.rope.scaling.type "${type}" is not supported`);
  const original_max_position_embeddings = keys.required('rope.scaling.original_context_length');
  return { rope_type: 'yarn', rope_theta, factor, original_max_position_embeddings };
}

function ropeWithFactors(
  config: LlamaConfig,
  factors: readonly number[],
  path: string,
): LlamaConfig['rope'] {
  const { rope } = config;
  if (rope.type !== 'default' || factors.length !== rope.dim / 2) {
    throw new UnsupportedError(
      `${path}: ${kRopeFactors} with ${factors.length} factors does not go with rope type ${rope.type} of ${rope.dim} channels`,
    );
  }
  return { type: 'factors', theta: rope.theta, dim: rope.dim, factors };
}

function tokenIds(file: GgufFile): Record<string, number> {
  const ids: Record<string, number> = {};
  for (const name of ['bos', 'eos', 'padding']) {
    const id = file.metadata.get(`tokenizer.ggml.${name}_token_id`);
    if (typeof id === 'number') ids[`${name === 'padding' ? 'pad' : name}_token_id`] = id;
  }
  return ids;
}

/** The factors of the rope frequencies, where the file has them (Llama 3.1 and later). */
export async function ggufRopeFactors(file: GgufFile): Promise<number[] | null> {
  if (!file.tensors.has(kRopeFactors)) return null;
  const tensor = noGrad(() => file.read(kRopeFactors, { checkFinite: true }));
  const factors = Array.from((await tensor.data()) as Float32Array);
  tensor.dispose();
  return factors;
}

export class GgufWeights implements WeightSource {
  readonly path: string;
  readonly shapes: ReadonlyMap<string, readonly number[]>;
  readonly #stored: ReadonlyMap<string, string>; // HF name to GGUF name

  constructor(
    private readonly file: GgufFile,
    private readonly config: LlamaConfig,
  ) {
    this.path = file.path;
    const tensors = [...file.tensors.values()].filter(({ name }) => name !== kRopeFactors);
    this.shapes = new Map(tensors.map(({ name, shape }) => [hfName(name), shape]));
    this.#stored = new Map(tensors.map(({ name }) => [hfName(name), name]));
  }

  read(name: string, { dtype, checkFinite }: WeightReadOptions): Tensor {
    const { numHeads, numKeyValueHeads } = this.config;
    const permutedHeads = /\.q_proj\./.test(name)
      ? numHeads
      : /\.k_proj\./.test(name)
        ? numKeyValueHeads
        : 0;
    const stored = this.#stored.get(name) ?? name;
    return this.file.read(stored, { dtype, checkFinite, permutedHeads });
  }

  close(): void {
    this.file.close();
  }
}
