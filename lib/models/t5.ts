/**
 * The t5 architecture, v1.0 and v1.1: pre-norm blocks without biases, attention without a scale but with a bias by
 * relative position, which the first block holds for all; the decoder reads the encoder through a second attention.
 * Dimensions: N rows, M rows of the encoder, C hidden, H heads, D head size, F mlp width, V vocabulary.
 */
import { Embedding, Linear, LinearGroup, Module, type RMSNorm } from '../nn/index.ts';
import { mul, relativeAttention, reshape } from '../ops/index.ts';
import { type Tensor, tensor } from '../tensor.ts';
import type { ModelBatch } from './batch.ts';
import { type Head, linearHead } from './causal_lm.ts';
import { configJsonOf } from './config_keys.ts';
import { statedRates } from './dropout_rates.ts';
import type { CachedLayer, CachePass } from './kv_cache.ts';
import { type Branch, Layer, runLayers } from './layers.ts';
import {
  checkBatch,
  type LayerSettings,
  type ModelInputs,
  type ModelOrigin,
  modelInputs,
} from './model.ts';
import { byRelativePosition, t5Bucket } from './relative_positions.ts';
import {
  type EncoderRows,
  type Seq2SeqFamily,
  type Seq2SeqInputs,
  Seq2SeqLM,
} from './seq2seq_lm.ts';
import { type T5Config, t5Config } from './t5_config.ts';
import { t5Gguf } from './t5_gguf.ts';
import type { WeightLoader } from './weights.ts';

interface Segments {
  readonly cuSeqlens: Tensor; // (B+1) i32
  readonly lengths: Tensor | null; // (B) i32
}

/** Inputs that the blocks of one stack share. */
interface Shared {
  readonly own: Segments;
  /** (2L-1,H) by key - query; (L,H) by query - key where there is a cache. */
  readonly bias: Tensor;
  readonly decoder: boolean;
  /** The encoder's result; null in the encoder itself, and where the cache has its keys and values. */
  readonly encoder: EncoderRows | null;
  /** The cache of the decoder's keys and values; null: there is none. */
  readonly cached: CachePass | null;
}

class T5Attention extends Module {
  readonly q: Linear;
  readonly k: Linear;
  readonly v: Linear;
  readonly o: Linear;
  readonly relative_attention_bias: Embedding | null;
  readonly #all: LinearGroup;
  readonly #keyValue: LinearGroup;
  readonly #config: T5Config;
  readonly #layer: number;

  /** @param layer the number of the attention among those that a cache keeps */
  constructor(
    config: T5Config,
    weights: WeightLoader,
    { withBias, layer }: { withBias: boolean; layer: number },
  ) {
    super();
    const { hiddenSize: c, numHeads: h, headDim: d, numBuckets } = config;
    this.q = weights.linear('q', [h * d, c], false);
    this.k = weights.linear('k', [h * d, c], false);
    this.v = weights.linear('v', [h * d, c], false);
    this.o = weights.linear('o', [c, h * d], false);
    this.relative_attention_bias = withBias
      ? new Embedding(weights.tensor('relative_attention_bias.weight', [numBuckets, h]))
      : null;
    this.#all = new LinearGroup([this.q, this.k, this.v]);
    this.#keyValue = new LinearGroup([this.k, this.v]);
    this.#config = config;
    this.#layer = layer;
  }

  /** Self-attention: x (N,C) -> (N,H*D), the input of `o` */
  self(x: Tensor, { own, bias, decoder, cached }: Shared): Tensor {
    const [q, k, v] = this.#all.forward(x).map((y) => this.#splitHeads(y)) as [
      Tensor,
      Tensor,
      Tensor,
    ];
    if (cached !== null) {
      return this.#mergeHeads(cached.attend(this.#layer, [q, k, v], { bias, scale: 1 }));
    }
    const attended = relativeAttention(q, k, v, {
      cuQueries: own.cuSeqlens,
      queryLengths: own.lengths,
      bias,
      causal: decoder,
      scale: 1,
    });
    return this.#mergeHeads(attended);
  }

  /** Cross-attention to the encoder's rows: x (N,C) -> (N,H*D), the input of `o` */
  cross(x: Tensor, { own, encoder, cached }: Shared): Tensor {
    const added = encoder && this.#keysAndValues(encoder.states);
    const q = this.#splitHeads(this.q.forward(x));
    if (cached !== null) {
      return this.#mergeHeads(cached.attendToEncoder(this.#layer, q, { added, scale: 1 }));
    }
    const { cuSeqlens, lengths } = encoder as EncoderRows;
    const attended = relativeAttention(q, ...(added as readonly [Tensor, Tensor]), {
      cuQueries: own.cuSeqlens,
      cuKeys: cuSeqlens,
      queryLengths: own.lengths,
      keyLengths: lengths,
      scale: 1,
    });
    return this.#mergeHeads(attended);
  }

  #keysAndValues(states: Tensor): readonly [Tensor, Tensor] {
    const both = this.#keyValue.forward(states).map((y) => this.#splitHeads(y));
    return both as [Tensor, Tensor];
  }

  #splitHeads(x: Tensor): Tensor {
    return reshape(x, [x.shape[0] as number, this.#config.numHeads, this.#config.headDim]);
  }

  #mergeHeads(attended: Tensor): Tensor {
    const [n, h, d] = attended.shape as [number, number, number];
    return reshape(attended, [n, h * d]);
  }
}

class T5Mlp extends Module {
  readonly wi: Linear | null;
  readonly wi_0: Linear | null;
  readonly wi_1: Linear | null;
  readonly wo: Linear;
  readonly #config: T5Config;
  readonly #inner: LinearGroup;

  constructor(config: T5Config, weights: WeightLoader) {
    super();
    const { hiddenSize: c, intermediateSize: f, gated } = config;
    const inner = (name: string, wanted: boolean) =>
      wanted ? weights.linear(name, [f, c], false) : null;
    this.wi = inner('wi', !gated);
    this.wi_0 = inner('wi_0', gated);
    this.wi_1 = inner('wi_1', gated);
    this.wo = weights.linear('wo', [c, f], false);
    this.#config = config;
    this.#inner = new LinearGroup(
      [this.wi, this.wi_0, this.wi_1].filter((linear) => linear !== null),
    );
  }

  /** x (N,C) -> (N,C) */
  forward(x: Tensor): Tensor {
    const [gate, up] = this.#inner.forward(x) as [Tensor, Tensor?];
    const activated = this.#config.activation(gate);
    return this.wo.forward(up === undefined ? activated : mul(activated, up));
  }
}

/** A sublayer of a block: its norm, and the attention or mlp after it. */
class T5Sublayer extends Module {
  readonly layer_norm: RMSNorm;
  readonly SelfAttention: T5Attention | null;
  readonly EncDecAttention: T5Attention | null;
  readonly DenseReluDense: T5Mlp | null;

  constructor(
    kind: 'SelfAttention' | 'EncDecAttention' | 'DenseReluDense',
    config: T5Config,
    weights: WeightLoader,
    { withBias, layer }: { withBias: boolean; layer: number },
  ) {
    super();
    const at = weights.at(kind);
    const attention = (wanted: string) =>
      kind === wanted ? new T5Attention(config, at, { withBias, layer }) : null;
    this.SelfAttention = attention('SelfAttention');
    this.EncDecAttention = attention('EncDecAttention');
    this.DenseReluDense = kind === 'DenseReluDense' ? new T5Mlp(config, at) : null;
    this.layer_norm = weights.rmsNorm('layer_norm', config.hiddenSize, config.norm);
  }

  /** The attention, see {@link Branch}; null where the sublayer is the mlp. */
  get attention(): Branch<Shared>['attention'] {
    const { SelfAttention: own, EncDecAttention: cross } = this;
    if (own) return (x, shared) => own.self(x, shared);
    return cross ? (x, shared) => cross.cross(x, shared) : undefined;
  }

  /** Applies the attention's output projection, or the mlp: (M,W) -> (M,C) */
  forward(x: Tensor): Tensor {
    const attention = this.SelfAttention ?? this.EncDecAttention;
    return attention ? attention.o.forward(x) : (this.DenseReluDense as T5Mlp).forward(x);
  }
}

class T5Block extends Layer<Shared> {
  readonly layer: readonly T5Sublayer[];

  constructor(
    config: T5Config,
    weights: WeightLoader,
    { decoder, index }: { decoder: boolean; index: number },
  ) {
    super();
    const first = index === 0;
    const kinds = decoder
      ? (['SelfAttention', 'EncDecAttention', 'DenseReluDense'] as const)
      : (['SelfAttention', 'DenseReluDense'] as const);
    this.layer = kinds.map(
      (kind, i) =>
        new T5Sublayer(kind, config, weights.at(`layer.${i}`), {
          withBias: first && i === 0,
          layer: kind === 'EncDecAttention' ? config.decoderLayers + index : index,
        }),
    );
  }

  branches(): readonly Branch<Shared>[] {
    return this.layer.map((sublayer) => ({
      preNorm: sublayer.layer_norm,
      attention: sublayer.attention,
      forward: (attended) => sublayer.forward(attended),
    }));
  }
}

/** Inputs of a stack besides its rows. */
interface StackRun extends LayerSettings {
  readonly encoder: Shared['encoder'];
  /** Rows of both sides. */
  readonly batchRows: number;
}

class T5Stack extends Module {
  readonly block: readonly T5Block[];
  readonly final_layer_norm: RMSNorm;
  readonly #decoder: boolean;
  readonly #config: T5Config;

  constructor(config: T5Config, weights: WeightLoader, { decoder }: { decoder: boolean }) {
    super();
    this.#config = config;
    this.#decoder = decoder;
    const count = decoder ? config.decoderLayers : config.encoderLayers;
    this.block = Array.from(
      { length: count },
      (_, i) => new T5Block(config, weights.at(`block.${i}`), { decoder, index: i }),
    );
    this.final_layer_norm = weights.rmsNorm('final_layer_norm', config.hiddenSize, config.norm);
  }

  /** @param embedded (N,C) -> (N,C) after the last norm, or its wanted rows */
  forward(
    embedded: Tensor,
    { cuSeqlens, lengths, length, wanted, cached }: ModelInputs,
    { encoder, keepOf, batchRows, onLayer }: StackRun,
  ): Tensor {
    const own = { cuSeqlens, lengths };
    const pass = cached?.pass ?? null;
    const bias = pass === null ? this.#bias(length) : this.#biasByDistance(length);
    return runLayers(this.block, embedded, {
      shared: { own, bias, decoder: this.#decoder, encoder, cached: pass },
      last: this.final_layer_norm,
      wanted,
      keep: keepOf,
      onLayer,
      batchRows,
    });
  }

  /** (2L-1,H) by key - query */
  #bias(length: number): Tensor {
    return this.#biasOf(byRelativePosition(length, (relative) => this.#bucket(relative)));
  }

  /** (L,H) by query - key */
  #biasByDistance(length: number): Tensor {
    return this.#biasOf(Int32Array.from({ length }, (_, distance) => this.#bucket(-distance)));
  }

  /** The bucket of a relative position, key - query. */
  #bucket(relative: number): number {
    const { numBuckets, maxDistance } = this.#config;
    return t5Bucket(relative, { numBuckets, maxDistance, bidirectional: !this.#decoder });
  }

  #biasOf(buckets: Int32Array): Tensor {
    const table = this.block[0]?.layer[0]?.SelfAttention?.relative_attention_bias as Embedding;
    return table.forward(tensor(buckets));
  }
}

/** Rates of dropout, which is not applied. */
const kDropouts = ['dropout_rate'];

/** t5 with a head over its vocabulary. */
export class T5ForConditionalGeneration extends Seq2SeqLM {
  readonly modelType = 't5';
  readonly config: T5Config;
  readonly shared: Embedding;
  readonly encoder: T5Stack;
  readonly decoder: T5Stack;
  readonly lm_head: Linear;

  constructor(config: T5Config, weights: WeightLoader, origin: ModelOrigin) {
    super(origin);
    this.config = config;
    const shape = [config.vocabSize, config.hiddenSize] as const;
    this.shared = new Embedding(weights.tensor('shared.weight', shape));
    this.encoder = new T5Stack(config, weights.at('encoder'), { decoder: false });
    this.decoder = new T5Stack(config, weights.at('decoder'), { decoder: true });
    this.lm_head = config.tied
      ? new Linear(this.shared.weight)
      : weights.linear('lm_head', shape, false);
  }

  get vocabSize(): number {
    return this.config.vocabSize;
  }

  get head(): Head {
    return linearHead(this.lm_head);
  }

  override get dropoutRates(): Readonly<Record<string, number>> {
    return statedRates(this.config.source, kDropouts);
  }

  configJson(): Record<string, unknown> {
    return {
      ...configJsonOf(this.config.source, {
        modelType: 't5',
        architecture: 'T5ForConditionalGeneration',
        dtypeName: this.dtypeName,
        tied: this.config.tied,
      }),
      scale_decoder_outputs: this.config.scaledHead,
    };
  }

  override get cachedLayers(): readonly CachedLayer[] {
    const { decoderLayers, numHeads, headDim } = this.config;
    const layer = { window: 0, numKeyValueHeads: numHeads, headDim };
    const own = Array.from({ length: decoderLayers }, () => layer);
    return [...own, ...own.map((each) => ({ ...each, of: 'encoder' as const }))];
  }

  get decoderStartTokenId(): number {
    return this.config.decoderStartTokenId;
  }

  get padTokenId(): number | null {
    return this.config.padTokenId;
  }

  /** (M,C): the encoder's states for `batch`, after its last norm. */
  encode(batch: ModelBatch): Tensor {
    checkBatch(batch, this);
    return this.onDevice(() => this.#encoded(modelInputs(batch), batch.inputIds.length));
  }

  /** @param batchRows rows that `layerKeep` is asked about */
  #encoded(inputs: ModelInputs, batchRows: number): Tensor {
    const { keepOf } = this;
    const embedded = this.shared.forward(inputs.ids);
    return this.encoder.forward(embedded, inputs, {
      encoder: null,
      keepOf,
      batchRows,
      onLayer: null,
    });
  }

  protected hidden(inputs: Seq2SeqInputs): Tensor {
    const { cuSeqlens, lengths, decoder: target } = inputs;
    const batchRows = (inputs.ids.shape[0] as number) + (target.ids.shape[0] as number);
    const states = this.#encoded(inputs, batchRows);
    return this.#decoded(target, { states, cuSeqlens, lengths }, batchRows);
  }

  protected decoded(target: ModelInputs, encoder: EncoderRows | null): Tensor {
    return this.#decoded(target, encoder, target.ids.shape[0] as number);
  }

  #decoded(target: ModelInputs, encoder: EncoderRows | null, batchRows: number): Tensor {
    const first = this.config.encoderLayers;
    const { keepOf, onLayer } = this.settingsOf(target);
    const decoded = this.decoder.forward(this.shared.forward(target.ids), target, {
      encoder,
      keepOf: (layer, rows) => keepOf(first + layer, rows),
      onLayer,
      batchRows,
    });
    return this.config.scaledHead ? mul(decoded, this.config.hiddenSize ** -0.5) : decoded;
  }
}

/** Copies of the embedding that old files hold, and a bias that no attention reads. */
const kUnused = /^(en|de)coder\.embed_tokens\.|EncDecAttention\.relative_attention_bias\./;

export const t5: Seq2SeqFamily = {
  modelType: 't5',
  features: 'v1.0 and v1.1: tied and untied heads, plain and gated mlp',
  embedding: 'shared.weight',
  gguf: t5Gguf,
  rename: (name) => (kUnused.test(name) ? null : name),
  configure(json, options) {
    const config = t5Config(json, options);
    return {
      tied: config.tied,
      make: ({ weights, origin, tied }) =>
        new T5ForConditionalGeneration({ ...config, tied }, weights, origin),
    };
  },
};
