/**
 * GGUF files read as Hugging Face checkpoints: metadata as config.json, tensors under HF's names and in HF's layout. Each family has
 * a table of the differences. Names: llama.cpp's gguf-py/gguf/constants.py.
 */
import { FormatError, UnsupportedError } from '../errors.ts';
import type { GgufFile, GgufMetadataValue } from '../io/index.ts';
import { concat, contiguous, permute, reshape, sub, zeros } from '../ops/index.ts';
import { noGrad, scope, type Tensor } from '../tensor.ts';
import type { ConfigOptions } from './config_keys.ts';
import { yarnAttentionFactor } from './rope.ts';
import type { StoredBlocks, WeightReadOptions, WeightSource } from './weights.ts';

/** The ways in which the storage of a tensor differs from that in safetensors. */
export interface TensorStorage {
  /** Heads whose rows are interleaved, see `GgufFile.read`. */
  readonly permutedHeads?: number;
  /** The number that the stored values have been increased by: Gemma's norms are stored as 1 + weight. */
  readonly offset?: number;
  /** Whether rows and columns are swapped. */
  readonly transposed?: boolean;
  /** Number of first rows that the file lacks; they become zeros. */
  readonly leadingRows?: number;
}

export interface GgufNames {
  /** Tensors outside the layers, by whole names. */
  readonly top: Readonly<Record<string, string>>;
  /** The prefix of a layer's number in the file. Default `blk`. */
  readonly blocks?: string;
  /** The prefix of a layer's number in Hugging Face's names. */
  readonly layers: string;
  /** Modules of layer N, by the name in `blk.N.<name>.weight`. */
  readonly block: Readonly<Record<string, string>>;
}

export interface GgufTable {
  /** general.architecture, the prefix of the metadata. */
  readonly architecture: string;
  /** Names for every stack of layers, of which the first that has a name applies; a function where they depend on the file. */
  readonly names: GgufNames | ((keys: GgufKeys) => readonly GgufNames[]);
  /** Metadata keys of the architecture, besides kCommonKeys, that are read or change nothing in what the model computes. Default: none. */
  readonly keys?: readonly string[];
  /** Tensors that are no parameters. Default: none. */
  readonly ignoredTensors?: readonly string[];
  /** Converts the metadata to the keys of config.json. */
  configJson(keys: GgufKeys): Record<string, unknown> | Promise<Record<string, unknown>>;
  /** The ways in which a tensor's storage differs from that in safetensors. Left out: none. @param name its Hugging Face name */
  stored?(name: string, json: Readonly<Record<string, unknown>>): TensorStorage;
}

/** Names of decoders with separate projections. */
export const kDecoderNames: GgufNames = {
  top: {
    'token_embd.weight': 'model.embed_tokens.weight',
    'output_norm.weight': 'model.norm.weight',
    'output.weight': 'lm_head.weight',
  },
  layers: 'model.layers',
  block: {
    attn_norm: 'input_layernorm',
    attn_q: 'self_attn.q_proj',
    attn_k: 'self_attn.k_proj',
    attn_v: 'self_attn.v_proj',
    attn_q_norm: 'self_attn.q_norm',
    attn_k_norm: 'self_attn.k_norm',
    attn_output: 'self_attn.o_proj',
    ffn_norm: 'post_attention_layernorm',
    ffn_gate: 'mlp.gate_proj',
    ffn_up: 'mlp.up_proj',
    ffn_down: 'mlp.down_proj',
  },
};

/** `stored` of architectures whose rotary embedding rotates pairs of neighbouring channels, so that rows of q and k are interleaved. */
export function storedInPairs(
  name: string,
  json: Readonly<Record<string, unknown>>,
): TensorStorage {
  if (/\.q_proj\./.test(name)) return { permutedHeads: Number(json.num_attention_heads) };
  if (/\.k_proj\./.test(name)) return { permutedHeads: Number(json.num_key_value_heads) };
  return {};
}

const kCommonKeys =
  `vocab_size context_length embedding_length block_count feed_forward_length attention.head_count
   attention.head_count_kv attention.layer_norm_rms_epsilon attention.key_length attention.value_length
   rope.dimension_count rope.freq_base rope.scaling.type rope.scaling.factor rope.scaling.original_context_length
   rope.scaling.attn_factor rope.scaling.finetuned tensor_data_layout`.split(/\s+/);

/** A file's metadata under its architecture, each value checked for its type. */
export class GgufKeys {
  constructor(
    readonly file: GgufFile,
    readonly architecture: string,
  ) {}

  number(key: string): number | undefined {
    const value = this.file.metadata.get(this.#name(key));
    // Files of hybrid models have a list with one value for each layer; equal values are one number.
    const list = listOf(value);
    const single = list?.every((item) => item === list[0]) ? list[0] : value;
    if (single === undefined || typeof single === 'number') return single;
    // The items of 64-bit lists.
    if (typeof single === 'bigint' && Number.isSafeInteger(Number(single))) return Number(single);
    throw this.error(key, `must be one number, got ${list === null ? value : shown(list)}`);
  }

  required(key: string): number {
    const value = this.number(key);
    if (value === undefined) throw this.error(key, 'is missing from the metadata');
    return value;
  }

  /** A number of things of which there is at least one. */
  count(key: string): number {
    const value = this.required(key);
    if (Number.isSafeInteger(value) && value > 0) return value;
    throw this.error(key, `must be a whole number from 1 on, got ${value}`);
  }

  text(key: string): string | undefined {
    const value = this.file.metadata.get(this.#name(key));
    if (value === undefined || typeof value === 'string') return value;
    throw this.error(key, 'must be a string');
  }

  flag(key: string): boolean | undefined {
    const value = this.file.metadata.get(this.#name(key));
    if (value === undefined || typeof value === 'boolean') return value;
    throw this.error(key, 'must be a boolean');
  }

  texts(key: string): readonly string[] | undefined {
    const value = this.file.metadata.get(this.#name(key));
    if (value === undefined) return undefined;
    if (Array.isArray(value) && value.every((item) => typeof item === 'string')) return value;
    throw this.error(key, 'must be a list of strings');
  }

  /** Whether the file holds a tensor. */
  has(tensor: string): boolean {
    return this.file.tensors.has(tensor);
  }

  /** The values of a tensor, or null where the file has none. */
  async values(name: string): Promise<number[] | null> {
    if (!this.has(name)) return null;
    const tensor = noGrad(() => this.file.read(name, { checkFinite: true }));
    const values = Array.from((await tensor.data()) as Float32Array);
    tensor.dispose();
    return values;
  }

  /** Checks that a key is missing or has the one supported value. @throws UnsupportedError if it has another */
  expect(key: string, value: number, what: string): void {
    const found = this.number(key) ?? value;
    if (found === value) return;
    const { path } = this.file;
    throw new UnsupportedError(
      `${path}: ${this.#name(key)} ${found} must be ${what} ${value}, the only one that is supported`,
    );
  }

  error(key: string, what: string): FormatError {
    const { path } = this.file;
    return new FormatError(`${path}: ${this.#name(key)} ${what}`, { path });
  }

  #name(key: string): string {
    return `${this.architecture}.${key}`;
  }
}

/** The items of a list in metadata; null for a value that is none. */
function listOf(value: GgufMetadataValue | undefined): readonly unknown[] | null {
  if (ArrayBuffer.isView(value)) return value as unknown as readonly unknown[];
  return Array.isArray(value) ? value : null;
}

/** The first items of a list, for messages. */
function shown(list: readonly unknown[]): string {
  const first = Array.from(list.slice(0, kShown), String);
  return `[${first.join(',')}${list.length > kShown ? `, and ${list.length - kShown} more` : ''}]`;
}

const kShown = 8;

/** The keys of config.json that all decoders have, in transformers 5's spelling. */
export function decoderJson(keys: GgufKeys): Record<string, unknown> {
  const heads = keys.count('attention.head_count');
  const headDim = keys.number('attention.key_length') ?? keys.count('embedding_length') / heads;
  keys.expect('attention.value_length', headDim, "the head's");
  return {
    vocab_size: vocabSize(keys.file),
    hidden_size: keys.required('embedding_length'),
    intermediate_size: keys.required('feed_forward_length'),
    num_hidden_layers: keys.required('block_count'),
    num_attention_heads: heads,
    num_key_value_heads: keys.number('attention.head_count_kv') ?? heads,
    head_dim: headDim,
    max_position_embeddings: keys.number('context_length') ?? 2048,
    rms_norm_eps: keys.required('attention.layer_norm_rms_epsilon'),
    rope_parameters: ropeParameters(keys, headDim),
    tie_word_embeddings: !keys.has('output.weight'),
    ...tokenIds(keys.file),
  };
}

/** Number of rows of the embedding. */
export function vocabSize({ tensors, path }: GgufFile): number {
  const embedding = tensors.get('token_embd.weight');
  if (embedding !== undefined) return embedding.shape[0] as number;
  throw new FormatError(`${path}: token_embd.weight is missing`, { path });
}

function ropeParameters(keys: GgufKeys, headDim: number): Record<string, unknown> {
  const rope_theta = keys.number('rope.freq_base') ?? 10_000;
  const type = keys.text('rope.scaling.type') ?? 'none';
  const dim = keys.number('rope.dimension_count') ?? headDim;
  const common = { rope_theta, ...(dim !== headDim && { partial_rotary_factor: dim / headDim }) };
  const attention = keys.number('rope.scaling.attn_factor') ?? 1;
  if (attention !== 1 && type !== 'yarn') {
    throw new UnsupportedError(
      `${keys.file.path}: ${keys.architecture}.rope.scaling.attn_factor ${attention} is only known with rope.scaling.type yarn, got ${type}`,
    );
  }
  if (type === 'none') return { rope_type: 'default', ...common };
  const factor = keys.required('rope.scaling.factor');
  if (type === 'linear') return { rope_type: 'linear', ...common, factor };
  if (type !== 'yarn') {
    const { path } = keys.file;
    throw new UnsupportedError(
      `${path}: ${keys.architecture}.rope.scaling.type "${type}" is not supported; known: none, linear, yarn`,
    );
  }
  const original_max_position_embeddings = keys.required('rope.scaling.original_context_length');
  return {
    rope_type: 'yarn',
    ...common,
    factor,
    original_max_position_embeddings,
    ...(attention !== 1 && { attention_factor: attention * yarnAttentionFactor(factor) }),
  };
}

/** Ids of special tokens under their keys in config.json. */
export function tokenIds({ metadata }: GgufFile): Record<string, number> {
  const ids: Record<string, number> = {};
  for (const name of ['bos', 'eos', 'padding']) {
    const id = metadata.get(`tokenizer.ggml.${name}_token_id`);
    if (typeof id === 'number') ids[`${name === 'padding' ? 'pad' : name}_token_id`] = id;
  }
  return ids;
}

/**
 * Reads a file as a configuration and a source of weights.
 * @throws FormatError for metadata that is missing or wrong, UnsupportedError for what is not understood
 */
export async function readGguf(
  file: GgufFile,
  table: GgufTable,
  { ignoreKeys = [] }: ConfigOptions,
): Promise<{ json: Record<string, unknown>; source: WeightSource }> {
  refuseUnknown(file, table, ignoreKeys);
  const keys = new GgufKeys(file, table.architecture);
  const json = await table.configJson(keys);
  const names = typeof table.names === 'function' ? table.names(keys) : [table.names];
  return { json, source: new GgufWeights(file, { ...table, names, json }) };
}

function refuseUnknown(file: GgufFile, table: GgufTable, ignoreKeys: readonly string[]): void {
  const prefix = `${table.architecture}.`;
  const known = new Set([...kCommonKeys, ...(table.keys ?? [])]);
  const unknown = [...file.metadata.keys()].filter(
    (key) =>
      key.startsWith(prefix) && !known.has(key.slice(prefix.length)) && !ignoreKeys.includes(key),
  );
  if (unknown.length > 0) {
    throw new UnsupportedError(
      `${file.path}: ${unknown.join(', ')} ${unknown.length > 1 ? 'are' : 'is'} not understood and may change the ` +
        'mathematics; pass ignoreKeys (--ignore-keys) if you know that it does not',
    );
  }
}

/** The HF name of a GGUF tensor; its own name where there is none. */
function hfName(name: string, names: readonly GgufNames[]): string {
  const [, blocks, layer, tensor = '', kind] =
    /^([\w.]+)\.(\d+)\.(\w+)\.(weight|bias)$/.exec(name) ?? [];
  for (const { top, blocks: own = 'blk', layers, block } of names) {
    const module = blocks === own && Object.hasOwn(block, tensor) ? block[tensor] : undefined;
    if (module !== undefined) return `${layers}.${layer}.${module}.${kind}`;
    const found = Object.hasOwn(top, name) ? top[name] : undefined;
    if (found !== undefined) return found;
  }
  return name;
}

/** The name in a GGUF file of a tensor with this Hugging Face name; null where the architecture has none. */
export function ggufName(
  hf: string,
  { top, blocks = 'blk', layers, block }: GgufNames,
): string | null {
  const whole = Object.entries(top).find(([, name]) => name === hf);
  if (whole !== undefined) return whole[0];
  if (!hf.startsWith(`${layers}.`)) return null;
  const [, layer, module, kind] =
    /^(\d+)\.(.+)\.(weight|bias)$/.exec(hf.slice(layers.length + 1)) ?? [];
  const own = Object.entries(block).find(([, name]) => name === module);
  return own === undefined ? null : `${blocks}.${layer}.${own[0]}.${kind}`;
}

/**
 * A tensor of rows in Hugging Face's order of halves, in the interleaved order of heads in which the llama architecture stores them:
 * the inverse of `permutedHeads` in `GgufFile.read`.
 */
export function interleavedRows(tensor: Tensor, heads: number): Tensor {
  const [rows, ...rest] = tensor.shape as readonly [number, ...number[]];
  const columns = rest.reduce((product, extent) => product * extent, 1);
  const halves = reshape(tensor, [heads, 2, rows / heads / 2, columns]);
  return reshape(contiguous(permute(halves, [0, 2, 1, 3])), tensor.shape);
}

/** A table completed for one file. */
interface ReadTable extends Pick<GgufTable, 'stored' | 'ignoredTensors'> {
  readonly names: readonly GgufNames[];
  readonly json: Readonly<Record<string, unknown>>;
}

function shapeOf(shape: readonly number[], stored: TensorStorage = {}): readonly number[] {
  const [rows, ...rest] = stored.transposed ? [...shape].reverse() : shape;
  return [(rows as number) + (stored.leadingRows ?? 0), ...rest];
}

class GgufWeights implements WeightSource {
  readonly path: string;
  readonly files: readonly GgufFile[];
  readonly shapes: ReadonlyMap<string, readonly number[]>;
  readonly #stored: ReadonlyMap<string, string>; // HF name to GGUF name

  constructor(
    private readonly file: GgufFile,
    private readonly table: ReadTable,
  ) {
    this.path = file.path;
    this.files = [file];
    const tensors = [...file.tensors.values()]
      .filter(({ name }) => !table.ignoredTensors?.includes(name))
      .map((tensor) => ({ ...tensor, hf: hfName(tensor.name, table.names) }));
    this.#stored = new Map(tensors.map(({ name, hf }) => [hf, name]));
    this.shapes = new Map(
      tensors.map(({ hf, shape }) => [hf, shapeOf(shape, table.stored?.(hf, table.json))]),
    );
  }

  /** The form of a weight in the file, with a default for every part that the table leaves out. */
  #layoutOf(name: string) {
    const none = { permutedHeads: 0, offset: 0, transposed: false, leadingRows: 0 };
    return { ...none, ...this.table.stored?.(name, this.table.json) };
  }

  read(name: string, { dtype, checkFinite }: WeightReadOptions): Tensor {
    const stored = this.#stored.get(name) ?? name;
    const { permutedHeads, offset, transposed, leadingRows } = this.#layoutOf(name);
    if (offset === 0 && !transposed && leadingRows === 0) {
      return this.file.read(stored, { dtype, checkFinite, permutedHeads });
    }
    return scope(() =>
      noGrad(() => {
        const wide = dtype === 'f64' || offset === 0 ? dtype : 'f32';
        const read = this.file.read(stored, { dtype: wide, checkFinite, permutedHeads });
        const values = offset === 0 ? read : sub(read, offset).to(dtype);
        const oriented = transposed ? permute(values, [1, 0]) : values;
        if (leadingRows === 0) return oriented;
        return concat([zeros([leadingRows, ...oriented.shape.slice(1)], { dtype }), oriented]);
      }),
    );
  }

  blocks(name: string): StoredBlocks | null {
    const info = this.file.tensors.get(this.#stored.get(name) ?? name);
    if (info === undefined || info.dtype === 'F32') return null;
    // Rows that are put back have memory of their own; the others are pages of the file.
    const { permutedHeads } = this.#layoutOf(name);
    return { form: info.dtype, bytes: permutedHeads === 0 ? 0 : info.bytes };
  }

  readBlocks(
    name: string,
    { dtype, checkFinite }: WeightReadOptions,
    wantsTransposed: boolean,
  ): Tensor {
    const { permutedHeads, offset, transposed, leadingRows } = this.#layoutOf(name);
    if (offset !== 0 || leadingRows !== 0 || transposed !== wantsTransposed) {
      throw new UnsupportedError(
        `${this.path}: ${name} differs from the model's in more than the order of rows, and cannot stay in the blocks of the file; ` +
          'leave baseFormat (--base-format) out',
      );
    }
    const stored = this.#stored.get(name) ?? name;
    return this.file.readBlocks(stored, { dtype, checkFinite, permutedHeads });
  }

  close(): void {
    this.file.close();
  }
}
