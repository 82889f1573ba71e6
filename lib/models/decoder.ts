/**
 * The decoder of most causal language models: an embedding, layers of rotary attention and a gated mlp, a norm. A family describes
 * each part in its configuration, and has a layer class of its own where its layers are built differently. Attributes are named as
 * in the checkpoint. Dimensions: N rows, C hidden, H heads, Hkv key/value heads, D head size, F mlp width, V vocabulary.
 */
import { Embedding, Linear, Module, type RMSNorm } from '../nn/index.ts';
import { mul, type RmsNormOptions } from '../ops/index.ts';
import type { DType, Tensor } from '../tensor.ts';
import { type AttentionConfig, type DecoderInputs, rowsOf, SelfAttention } from './attention.ts';
import { CausalLM, type Head, linearHead } from './causal_lm.ts';
import { configJsonOf } from './config_keys.ts';
import type { CachedLayer } from './kv_cache.ts';
import { type Branch, Layer, runLayers } from './layers.ts';
import { type GatedActivation, GatedMlp } from './mlp.ts';
import type { LayerSettings, ModelInputs, ModelOrigin } from './model.ts';
import { RopeCache, type RopeConfig, steadyLength } from './rope.ts';
import type { WeightLoader } from './weights.ts';

/** The window of one layer's attention, and its rotary embedding. */
export interface LayerAttention {
  /** Number of keys that a row attends to, itself included; 0: all before it. */
  readonly window: number;
  /** Index into `ropes`; null: no rotary embedding. */
  readonly rope: number | null;
}

/** The part of a decoder's configuration that its computation needs. */
export interface DecoderConfig {
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly numLayers: number;
  readonly numHeads: number;
  readonly numKeyValueHeads: number;
  readonly headDim: number;
  readonly maxPositions: number;
  /** Options of every RMSNorm. `castBeforeWeight` makes a difference in bf16 only. */
  readonly norm: Readonly<RmsNormOptions>;
  readonly activation: GatedActivation;
  readonly ropes: readonly RopeConfig[];
  /** One for each layer. */
  readonly layers: readonly LayerAttention[];
  /** Factor of the attention scores. */
  readonly attentionScale: number;
  /** Scores become softcap * tanh(score / softcap); 0: no soft-capping. */
  readonly attentionSoftcap: number;
  /** RMSNorms of q and k before the rotary embedding: of each head, of the whole vector, or none. */
  readonly qkNorm: 'head' | 'whole' | null;
  /** Biases on q, k, v; on o; on gate, up, down. */
  readonly qkvBias: boolean;
  readonly outputBias: boolean;
  readonly mlpBias: boolean;
  /** Factor of the embeddings, rounded to the model's dtype. */
  readonly embeddingScale: number;
  /** Logits become softcap * tanh(logit / softcap); 0: no soft-capping. */
  readonly headSoftcap: number;
  readonly tied: boolean;
  /** The keys of config.json as they were read, for writing it again. */
  readonly source: Readonly<Record<string, unknown>>;
}

export type DecoderLayer = Layer<DecoderInputs>;

/** Makes layer i of a decoder. */
export type MakeLayer = (config: DecoderConfig, weights: WeightLoader, i: number) => DecoderLayer;

/** Options of layer i's SelfAttention. */
export function attentionOf(config: DecoderConfig, i: number): AttentionConfig {
  const { window, rope } = config.layers[i] as LayerAttention;
  const { attentionScale: scale, attentionSoftcap: softcap, ...rest } = config;
  return { ...rest, window, rope, scale, softcap, layer: i };
}

export interface Attention extends Module {
  readonly o_proj: Linear;
  /** x (N,C) -> (N,H*D), the input of o_proj */
  forward(x: Tensor, inputs: DecoderInputs): Tensor;
}
export interface Mlp extends Module {
  forward(x: Tensor): Tensor;
}

/** The layer of Llama, with a norm before attention and another before the mlp. */
export class PreNormLayer extends Layer<DecoderInputs> {
  readonly input_layernorm: RMSNorm;
  readonly self_attn: Attention;
  readonly post_attention_layernorm: RMSNorm;
  readonly mlp: Mlp;

  constructor(
    { hiddenSize, norm }: DecoderConfig,
    weights: WeightLoader,
    parts: { attention: Attention; mlp: Mlp },
  ) {
    super();
    this.input_layernorm = weights.rmsNorm('input_layernorm', hiddenSize, norm);
    this.self_attn = parts.attention;
    this.post_attention_layernorm = weights.rmsNorm('post_attention_layernorm', hiddenSize, norm);
    this.mlp = parts.mlp;
  }

  branches(): readonly Branch<DecoderInputs>[] {
    return [
      {
        preNorm: this.input_layernorm,
        attention: (x, inputs) => this.self_attn.forward(x, inputs),
        forward: (attended) => this.self_attn.o_proj.forward(attended),
      },
      {
        preNorm: this.post_attention_layernorm,
        forward: (x) => this.mlp.forward(x),
      },
    ];
  }
}

/** Makes layers with separate projections and a norm before each branch. */
export const makePreNormLayer: MakeLayer = (config, weights, i) =>
  new PreNormLayer(config, weights, {
    attention: new SelfAttention(attentionOf(config, i), weights.at('self_attn')),
    mlp: new GatedMlp(config, weights.at('mlp')),
  });

/** A layer with a norm of what each branch adds, before the sum, and (Gemma 2 and 3) with one of what it reads. */
class OutputNormLayer extends Layer<DecoderInputs> {
  readonly input_layernorm: RMSNorm | undefined;
  readonly self_attn: SelfAttention;
  readonly post_attention_layernorm: RMSNorm;
  readonly pre_feedforward_layernorm: RMSNorm | undefined;
  readonly mlp: GatedMlp;
  readonly post_feedforward_layernorm: RMSNorm;

  constructor(
    config: DecoderConfig,
    weights: WeightLoader,
    { layer, preNorms }: { layer: number; preNorms: boolean },
  ) {
    super();
    const norm = (name: string): RMSNorm => weights.rmsNorm(name, config.hiddenSize, config.norm);
    this.input_layernorm = preNorms ? norm('input_layernorm') : undefined;
    this.self_attn = new SelfAttention(attentionOf(config, layer), weights.at('self_attn'));
    this.post_attention_layernorm = norm('post_attention_layernorm');
    this.pre_feedforward_layernorm = preNorms ? norm('pre_feedforward_layernorm') : undefined;
    this.mlp = new GatedMlp(config, weights.at('mlp'));
    this.post_feedforward_layernorm = norm('post_feedforward_layernorm');
  }

  branches(): readonly Branch<DecoderInputs>[] {
    return [
      {
        preNorm: this.input_layernorm,
        attention: (x, inputs) => this.self_attn.forward(x, inputs),
        forward: (attended) =>
          this.post_attention_layernorm.forward(this.self_attn.o_proj.forward(attended)),
      },
      {
        preNorm: this.pre_feedforward_layernorm,
        forward: (x) => this.post_feedforward_layernorm.forward(this.mlp.forward(x)),
      },
    ];
  }
}

/** Makes layers with norms before and after each branch. */
export const makeSandwichLayer: MakeLayer = (config, weights, layer) =>
  new OutputNormLayer(config, weights, { layer, preNorms: true });

/** Makes layers with norms after each branch alone. */
export const makePostNormLayer: MakeLayer = (config, weights, layer) =>
  new OutputNormLayer(config, weights, { layer, preNorms: false });

/** The part of a decoder without its head: from ids to hidden states. */
export class Decoder extends Module {
  readonly embed_tokens: Embedding;
  readonly layers: readonly DecoderLayer[];
  readonly norm: RMSNorm;
  readonly #ropes: readonly RopeCache[];
  readonly #embeddingScale: number;

  constructor(config: DecoderConfig, weights: WeightLoader, makeLayer: MakeLayer) {
    super();
    const { vocabSize, hiddenSize, numLayers } = config;
    this.embed_tokens = new Embedding(
      weights.table('embed_tokens.weight', [vocabSize, hiddenSize]),
    );
    this.layers = Array.from({ length: numLayers }, (_, i) =>
      makeLayer(config, weights.at(`layers.${i}`), i),
    );
    this.norm = weights.rmsNorm('norm', hiddenSize, config.norm);
    const tables = weights.dtype === 'f64' ? 'f64' : 'f32';
    this.#ropes = config.ropes.map((rope) => new RopeCache(rope, tables));
    this.#embeddingScale = roundedTo(config.embeddingScale, weights.dtype);
  }

  /** @returns (N,C) after the last norm, or its wanted rows */
  forward(inputs: ModelInputs, { keepOf, onLayer }: LayerSettings): Tensor {
    const { ids, rowOf, wanted } = inputs;
    const embedded = this.embed_tokens.forward(ids);
    return runLayers(
      this.layers,
      this.#embeddingScale === 1 ? embedded : mul(embedded, this.#embeddingScale),
      {
        shared: {
          rows: rowsOf(inputs),
          ropes: this.#ropes.map((rope) => rope.tablesOf(inputs)),
        },
        last: this.norm,
        wanted,
        keep: keepOf,
        onLayer,
        batchRows: rowOf?.shape[0],
      },
    );
  }

  override dispose(): void {
    super.dispose();
    for (const rope of this.#ropes) rope.dispose();
  }
}

/** A number rounded to a dtype. */
function roundedTo(value: number, dtype: DType): number {
  if (dtype === 'f64') return value;
  if (dtype !== 'bf16') return Math.fround(value);
  const bits = new Uint32Array(Float32Array.of(value).buffer);
  const word = bits[0] as number;
  bits[0] = (word + 0x7fff + ((word >>> 16) & 1)) & 0xffff0000; // ties to even
  return new Float32Array(bits.buffer)[0] as number;
}

/** Properties in which the causal models of the families differ. */
export interface DecoderFamily {
  readonly modelType: string;
  /** transformers' class, written into config.json. */
  readonly architecture: string;
  readonly makeLayer: MakeLayer;
}

/** A decoder with a head over its vocabulary. */
export class DecoderLM extends CausalLM {
  readonly modelType: string;
  readonly config: DecoderConfig;
  readonly model: Decoder;
  readonly lm_head: Linear;
  readonly #family: DecoderFamily;

  constructor(
    family: DecoderFamily,
    config: DecoderConfig,
    weights: WeightLoader,
    origin: ModelOrigin,
  ) {
    super(origin);
    this.modelType = family.modelType;
    this.config = config;
    this.#family = family;
    this.model = new Decoder(config, weights.at('model'), family.makeLayer);
    this.lm_head = config.tied
      ? new Linear(this.model.embed_tokens.weight)
      : weights.linear('lm_head', [config.vocabSize, config.hiddenSize], false);
  }

  get vocabSize(): number {
    return this.config.vocabSize;
  }

  override get graphObstacle(): string | null {
    return this.offload === null ? null : 'baseOffload reads its weights anew for every step';
  }

  get head(): Head {
    return linearHead(this.lm_head, this.config.headSoftcap);
  }

  /** `max_position_embeddings`, unless the rotary embedding adapts to any length. */
  override get contextLength(): number {
    const { ropes, maxPositions } = this.config;
    const adapts = ropes.some(({ type }) => type === 'dynamic');
    return adapts ? Number.POSITIVE_INFINITY : maxPositions;
  }

  override get steadyLength(): number {
    return steadyLength(this.config.ropes);
  }

  override get configuredPositions(): number {
    return this.config.maxPositions;
  }

  protected override get sharesRows(): boolean {
    return true;
  }

  override get cachedLayers(): readonly CachedLayer[] {
    const { layers, numKeyValueHeads, headDim } = this.config;
    return layers.map(({ window }) => ({ window, numKeyValueHeads, headDim }));
  }

  configJson(): Record<string, unknown> {
    const { source, tied } = this.config;
    return configJsonOf(source, { ...this.#family, dtypeName: this.dtypeName, tied });
  }

  protected hidden(inputs: ModelInputs): Tensor {
    return this.model.forward(inputs, this.settingsOf(inputs));
  }

  override dispose(): void {
    super.dispose();
    this.model.dispose();
  }
}
