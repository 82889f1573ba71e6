/**
 * GPT-2: LayerNorm before each branch, learned positions, a plain mlp, biases everywhere. Its linears are stored as (in,out)
 * (Conv1D). The dropouts of its configuration are those it was trained with; fine-tuning here runs without.
 */
import { z } from 'zod';
import { type Conv1D, Embedding, type LayerNorm, Linear, Module } from '../nn/index.ts';
import { add, split } from '../ops/index.ts';
import type { Tensor } from '../tensor.ts';
import { type Activation, activation } from './activations.ts';
import { attend, type Rows, rowsOf } from './attention.ts';
import { CausalLM, type Head, linearHead } from './causal_lm.ts';
import {
  configError,
  configJsonOf,
  ignored,
  layerCount,
  optionalSize,
  parseConfig,
  positionCount,
  refuseValues,
  size,
} from './config_keys.ts';
import { flag, type ReadOptions, text } from './decoder_config.ts';
import { statedRates } from './dropout_rates.ts';
import type { ModelFamily } from './family.ts';
import { type GgufKeys, type GgufTable, tokenIds, vocabSize } from './gguf.ts';
import type { CachedLayer } from './kv_cache.ts';
import { type Branch, Layer, runLayers } from './layers.ts';
import type { LayerSettings, ModelInputs, ModelOrigin } from './model.ts';
import type { WeightLoader } from './weights.ts';

interface Gpt2Config {
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly numLayers: number;
  readonly numHeads: number;
  readonly maxPositions: number;
  readonly eps: number;
  readonly activation: Activation;
  /** Factor of the attention scores, by layer. */
  readonly scales: readonly number[];
  readonly tied: boolean;
  readonly source: Readonly<Record<string, unknown>>;
}

class Gpt2Attention extends Module {
  readonly c_attn: Conv1D;
  readonly c_proj: Conv1D;
  readonly #heads: { numHeads: number; numKeyValueHeads: number; headDim: number };
  readonly #scale: number;
  readonly #layer: number;

  constructor({ hiddenSize: c, numHeads, scales }: Gpt2Config, weights: WeightLoader, i: number) {
    super();
    this.c_attn = weights.conv1d('c_attn', [3 * c, c]);
    this.c_proj = weights.conv1d('c_proj', [c, c]);
    this.#heads = { numHeads, numKeyValueHeads: numHeads, headDim: c / numHeads };
    this.#scale = scales[i] as number;
    this.#layer = i;
  }

  /** x (N,C) -> (N,C), the input of c_proj */
  forward(x: Tensor, rows: Rows): Tensor {
    const c = x.shape[1] as number;
    const qkv = split(this.c_attn.forward(x), [c, c, c], 1) as [Tensor, Tensor, Tensor];
    return attend(qkv, this.#heads, rows, { scale: this.#scale, layer: this.#layer });
  }
}

class Gpt2Block extends Layer<Rows> {
  readonly ln_1: LayerNorm;
  readonly attn: Gpt2Attention;
  readonly ln_2: LayerNorm;
  readonly #mlp: (x: Tensor) => Tensor;

  constructor(config: Gpt2Config, weights: WeightLoader, i: number) {
    super();
    const { hiddenSize: c, intermediateSize: f, eps, activation } = config;
    this.ln_1 = weights.layerNorm('ln_1', c, eps);
    this.attn = new Gpt2Attention(config, weights.at('attn'), i);
    this.ln_2 = weights.layerNorm('ln_2', c, eps);
    const up = weights.conv1d('mlp.c_fc', [f, c]);
    const down = weights.conv1d('mlp.c_proj', [c, f]);
    this.place({ 'mlp.c_fc': up, 'mlp.c_proj': down });
    this.#mlp = (x) => down.forward(activation(up.forward(x)));
  }

  branches(): readonly Branch<Rows>[] {
    return [
      {
        preNorm: this.ln_1,
        attention: (x, rows) => this.attn.forward(x, rows),
        forward: (attended) => this.attn.c_proj.forward(attended),
      },
      {
        preNorm: this.ln_2,
        forward: this.#mlp,
      },
    ];
  }
}

class Gpt2Model extends Module {
  readonly wte: Embedding;
  readonly wpe: Embedding;
  readonly h: readonly Gpt2Block[];
  readonly ln_f: LayerNorm;

  constructor(config: Gpt2Config, weights: WeightLoader) {
    super();
    const { vocabSize: v, hiddenSize: c, maxPositions, numLayers } = config;
    this.wte = new Embedding(weights.table('wte.weight', [v, c]));
    this.wpe = new Embedding(weights.tensor('wpe.weight', [maxPositions, c]));
    this.h = Array.from(
      { length: numLayers },
      (_, i) => new Gpt2Block(config, weights.at(`h.${i}`), i),
    );
    this.ln_f = weights.layerNorm('ln_f', c, config.eps);
  }

  forward(inputs: ModelInputs, { keepOf, onLayer }: LayerSettings): Tensor {
    const { ids, positions, rowOf, wanted } = inputs;
    const embedded = add(this.wte.forward(ids), this.wpe.forward(positions));
    return runLayers(this.h, embedded, {
      shared: rowsOf(inputs),
      last: this.ln_f,
      wanted,
      keep: keepOf,
      onLayer,
      batchRows: rowOf?.shape[0],
    });
  }
}

const kModel = { modelType: 'gpt2', architecture: 'GPT2LMHeadModel' };

/** Rates of dropout, which is not applied. */
const kDropouts = ['attn_pdrop', 'embd_pdrop', 'resid_pdrop'];

class Gpt2LM extends CausalLM {
  readonly modelType = kModel.modelType;
  readonly config: Gpt2Config;
  readonly transformer: Gpt2Model;
  readonly lm_head: Linear;

  constructor(config: Gpt2Config, weights: WeightLoader, origin: ModelOrigin) {
    super(origin);
    this.config = config;
    this.transformer = new Gpt2Model(config, weights.at('transformer'));
    this.lm_head = config.tied
      ? new Linear(this.transformer.wte.weight)
      : weights.linear('lm_head', [config.vocabSize, config.hiddenSize], false);
  }

  override get graphObstacle(): string | null {
    return this.offload === null ? null : 'baseOffload reads its weights anew for every step';
  }

  get vocabSize(): number {
    return this.config.vocabSize;
  }

  protected override get maxPositions(): number {
    return this.config.maxPositions;
  }

  get head(): Head {
    return linearHead(this.lm_head);
  }

  protected override get sharesRows(): boolean {
    return true;
  }

  override get cachedLayers(): readonly CachedLayer[] {
    const { numLayers, numHeads, hiddenSize } = this.config;
    const layer = { window: 0, numKeyValueHeads: numHeads, headDim: hiddenSize / numHeads };
    return Array.from({ length: numLayers }, () => layer);
  }

  override get dropoutRates(): Readonly<Record<string, number>> {
    return statedRates(this.config.source, kDropouts);
  }

  configJson(): Record<string, unknown> {
    const { source, tied } = this.config;
    return configJsonOf(source, { ...kModel, dtypeName: this.dtypeName, tied });
  }

  protected hidden(inputs: ModelInputs): Tensor {
    return this.transformer.forward(inputs, this.settingsOf(inputs));
  }
}

const kShape = {
  vocab_size: size,
  n_embd: size,
  n_layer: layerCount,
  n_head: size,
  n_inner: optionalSize,
  n_positions: optionalSize,
  n_ctx: positionCount.nullish(),
  activation_function: text,
  layer_norm_epsilon: z.number().positive().nullish(),
  scale_attn_weights: flag,
  scale_attn_by_inverse_layer_idx: flag,
  add_cross_attention: flag,
  tie_word_embeddings: flag,
  // How scores are computed in half precision; here always in f32.
  reorder_and_upcast_attn: flag,
  // Rates of dropout, keys of heads of other tasks, and those of the first GPT that are left in the files of the larger models.
  ...ignored('attn_pdrop embd_pdrop resid_pdrop'),
  ...ignored(
    'summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj',
  ),
  ...ignored('n_special predict_special_tokens'),
};

function gpt2Config(json: Record<string, unknown>, options: ReadOptions): Gpt2Config {
  const keys = parseConfig(kShape, json, options);
  const { path } = options;
  refuseValues(path, { add_cross_attention: keys.add_cross_attention || null });
  if (keys.n_embd % keys.n_head !== 0) {
    throw configError(path, `n_embd ${keys.n_embd} must be a multiple of n_head ${keys.n_head}`);
  }
  const scale = keys.scale_attn_weights === false ? 1 : 1 / Math.sqrt(keys.n_embd / keys.n_head);
  const byLayer = keys.scale_attn_by_inverse_layer_idx ?? false;
  return {
    vocabSize: keys.vocab_size,
    hiddenSize: keys.n_embd,
    intermediateSize: keys.n_inner ?? 4 * keys.n_embd,
    numLayers: keys.n_layer,
    numHeads: keys.n_head,
    maxPositions: keys.n_positions ?? keys.n_ctx ?? 1024,
    eps: keys.layer_norm_epsilon ?? 1e-5,
    activation: activation(keys.activation_function ?? 'gelu_new', {
      path,
      key: 'activation_function',
    }),
    scales: Array.from({ length: keys.n_layer }, (_, i) => (byLayer ? scale / (i + 1) : scale)),
    tied: keys.tie_word_embeddings ?? true,
    source: json,
  };
}

const gguf: GgufTable = {
  architecture: 'gpt2',
  names: {
    top: {
      'token_embd.weight': 'transformer.wte.weight',
      'position_embd.weight': 'transformer.wpe.weight',
      'output_norm.weight': 'transformer.ln_f.weight',
      'output_norm.bias': 'transformer.ln_f.bias',
      'output.weight': 'lm_head.weight',
    },
    layers: 'transformer.h',
    block: {
      attn_norm: 'ln_1',
      attn_qkv: 'attn.c_attn',
      attn_output: 'attn.c_proj',
      ffn_norm: 'ln_2',
      ffn_up: 'mlp.c_fc',
      ffn_down: 'mlp.c_proj',
    },
  },
  keys: ['attention.layer_norm_epsilon'],
  configJson: (keys: GgufKeys) => ({
    vocab_size: vocabSize(keys.file),
    n_embd: keys.required('embedding_length'),
    n_inner: keys.required('feed_forward_length'),
    n_layer: keys.required('block_count'),
    n_head: keys.required('attention.head_count'),
    n_positions: keys.required('context_length'),
    layer_norm_epsilon: keys.required('attention.layer_norm_epsilon'),
    activation_function: 'gelu_new',
    tie_word_embeddings: true, // files may hold the embedding a second time
    ...tokenIds(keys.file),
  }),
  stored: (name) => ({ transposed: /\.(c_attn|c_proj|c_fc)\.weight$/.test(name) }),
};

export const gpt2: ModelFamily = {
  modelType: kModel.modelType,
  features: 'learned positions, LayerNorm, Conv1D weights',
  prefix: 'transformer.',
  embedding: 'transformer.wte.weight',
  gguf,
  configure: (json, options) => {
    const config = gpt2Config(json, options);
    return {
      tied: config.tied,
      causalLM: ({ weights, origin, tied }) => new Gpt2LM({ ...config, tied }, weights, origin),
    };
  },
};
