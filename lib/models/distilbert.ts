/**
 * The distilbert architecture: bert's post-norm blocks under other names, without token types and pooler; the head is a
 * dense layer with relu and a projection on the first token. Dimensions as in bert_layers.ts.
 */
import { z } from 'zod';
import { Embedding, type LayerNorm, type Linear, LinearGroup, Module } from '../nn/index.ts';
import { add, relu } from '../ops/index.ts';
import type { Tensor } from '../tensor.ts';
import { activation } from './activations.ts';
import { checkHeads } from './bert.ts';
import { distilBertGguf } from './bert_gguf.ts';
import { attendBothWays, type BlockConfig, layerNorm, type Segments } from './bert_layers.ts';
import type { ClassifierKind } from './classifier_kind.ts';
import { layerCount, type ParseConfigOptions, parseConfig, size } from './config_keys.ts';
import { statedRates } from './dropout_rates.ts';
import { type Branch, Layer, runLayers } from './layers.ts';
import type { ModelInputs, ModelOrigin } from './model.ts';
import { trunkNames } from './renamed_weights.ts';
import { type HeadOrigin, SequenceClassifier } from './sequence_classifier.ts';
import type { WeightLoader } from './weights.ts';

interface DistilBertConfig extends BlockConfig {
  readonly vocabSize: number;
  readonly numLayers: number;
  readonly positionRows: number;
  readonly source: Readonly<Record<string, unknown>>;
}

const ignored = z.unknown().optional();
const kShape = {
  vocab_size: size,
  dim: size,
  hidden_dim: size,
  n_layers: layerCount,
  n_heads: size,
  max_position_embeddings: size,
  activation: z.string().nullish(),
  // Dropout is not applied; a sinusoidal table stands in the file like a learned one; the rest is of other heads.
  dropout: ignored,
  attention_dropout: ignored,
  seq_classif_dropout: ignored,
  qa_dropout: ignored,
  sinusoidal_pos_embds: ignored,
  tie_weights_: ignored,
  tie_word_embeddings: ignored,
};

/** The eps of the norms, for which transformers has no key. */
const kLayerNormEps = 1e-12;

function distilBertConfig(
  json: Record<string, unknown>,
  options: ParseConfigOptions,
): DistilBertConfig {
  const { path } = options;
  const config = parseConfig(kShape, json, options);
  checkHeads(config, ['dim', 'n_heads'], path);
  return {
    vocabSize: config.vocab_size,
    hiddenSize: config.dim,
    intermediateSize: config.hidden_dim,
    numLayers: config.n_layers,
    numHeads: config.n_heads,
    layerNormEps: kLayerNormEps,
    activation: activation(config.activation ?? 'gelu', { path, key: 'activation' }),
    positionRows: config.max_position_embeddings,
    source: json,
  };
}

class Embeddings extends Module {
  readonly word_embeddings: Embedding;
  readonly position_embeddings: Embedding;
  readonly LayerNorm: LayerNorm;

  constructor(config: DistilBertConfig, weights: WeightLoader) {
    super();
    const { vocabSize, positionRows, hiddenSize } = config;
    this.word_embeddings = new Embedding(
      weights.tensor('word_embeddings.weight', [vocabSize, hiddenSize]),
    );
    this.position_embeddings = new Embedding(
      weights.tensor('position_embeddings.weight', [positionRows, hiddenSize]),
    );
    this.LayerNorm = layerNorm('LayerNorm', config, weights);
  }

  /** (N,C) */
  forward({ ids, positions }: ModelInputs): Tensor {
    const words = this.word_embeddings.forward(ids);
    return this.LayerNorm.forward(add(words, this.position_embeddings.forward(positions)));
  }
}

class Attention extends Module {
  readonly q_lin: Linear;
  readonly k_lin: Linear;
  readonly v_lin: Linear;
  readonly out_lin: Linear;
  readonly #qkv: LinearGroup;
  readonly #numHeads: number;

  constructor({ hiddenSize: c, numHeads }: BlockConfig, weights: WeightLoader) {
    super();
    this.q_lin = weights.linear('q_lin', [c, c], true);
    this.k_lin = weights.linear('k_lin', [c, c], true);
    this.v_lin = weights.linear('v_lin', [c, c], true);
    this.out_lin = weights.linear('out_lin', [c, c], true);
    this.#qkv = new LinearGroup([this.q_lin, this.k_lin, this.v_lin]);
    this.#numHeads = numHeads;
  }

  /** x (N,C) -> (N,C), the input of out_lin */
  forward(x: Tensor, segments: Segments): Tensor {
    return attendBothWays(this.#qkv.forward(x), this.#numHeads, segments);
  }
}

class Ffn extends Module {
  readonly lin1: Linear;
  readonly lin2: Linear;
  readonly #config: BlockConfig;

  constructor(config: BlockConfig, weights: WeightLoader) {
    super();
    const { hiddenSize: c, intermediateSize: f } = config;
    this.lin1 = weights.linear('lin1', [f, c], true);
    this.lin2 = weights.linear('lin2', [c, f], true);
    this.#config = config;
  }

  /** x (N,C) -> (N,C) */
  forward(x: Tensor): Tensor {
    return this.lin2.forward(this.#config.activation(this.lin1.forward(x)));
  }
}

class Block extends Layer<Segments> {
  readonly attention: Attention;
  readonly sa_layer_norm: LayerNorm;
  readonly ffn: Ffn;
  readonly output_layer_norm: LayerNorm;

  constructor(config: BlockConfig, weights: WeightLoader) {
    super();
    this.attention = new Attention(config, weights.at('attention'));
    this.sa_layer_norm = layerNorm('sa_layer_norm', config, weights);
    this.ffn = new Ffn(config, weights.at('ffn'));
    this.output_layer_norm = layerNorm('output_layer_norm', config, weights);
  }

  branches(): readonly Branch<Segments>[] {
    return [
      {
        postNorm: this.sa_layer_norm,
        attention: (x, segments) => this.attention.forward(x, segments),
        forward: (attended) => this.attention.out_lin.forward(attended),
      },
      {
        postNorm: this.output_layer_norm,
        forward: (x) => this.ffn.forward(x),
      },
    ];
  }
}

class Transformer extends Module {
  readonly layer: readonly Block[];

  constructor(config: DistilBertConfig, weights: WeightLoader) {
    super();
    this.layer = Array.from(
      { length: config.numLayers },
      (_, i) => new Block(config, weights.at(`layer.${i}`)),
    );
  }
}

class DistilBertModel extends Module {
  readonly embeddings: Embeddings;
  readonly transformer: Transformer;

  constructor(config: DistilBertConfig, weights: WeightLoader) {
    super();
    this.embeddings = new Embeddings(config, weights.at('embeddings'));
    this.transformer = new Transformer(config, weights.at('transformer'));
  }
}

/** Rates of dropout, which is not applied. */
const kDropouts = ['dropout', 'attention_dropout', 'seq_classif_dropout'];

/** distilbert with its two-layer head on the first token. */
export class DistilBertForSequenceClassification extends SequenceClassifier {
  readonly modelType = 'distilbert';
  readonly distilbert: DistilBertModel;
  readonly pre_classifier: Linear;
  readonly classifier: Linear;
  readonly #config: DistilBertConfig;

  constructor(
    config: DistilBertConfig,
    weights: WeightLoader,
    origin: ModelOrigin,
    head: HeadOrigin,
  ) {
    super(origin, head);
    const { hiddenSize: c } = config;
    this.#config = config;
    this.distilbert = new DistilBertModel(config, weights.at('distilbert'));
    this.pre_classifier = weights.linear('pre_classifier', [c, c], true);
    this.classifier = weights.linear('classifier', [head.numLabels, c], true);
  }

  get vocabSize(): number {
    return this.#config.vocabSize;
  }

  get headPaths(): readonly string[] {
    return ['pre_classifier', 'classifier'];
  }

  protected override get maxPositions(): number {
    return this.#config.positionRows;
  }

  override get dropoutRates(): Readonly<Record<string, number>> {
    return statedRates(this.#config.source, kDropouts);
  }

  protected hidden(inputs: ModelInputs): Tensor {
    const { cuSeqlens, lengths, wanted } = inputs;
    return runLayers(
      this.distilbert.transformer.layer,
      this.distilbert.embeddings.forward(inputs),
      {
        shared: { cuSeqlens, lengths },
        last: null,
        wanted,
        keep: this.keepOf,
        onLayer: this.onLayer,
      },
    );
  }

  protected classify(rows: Tensor): Tensor {
    return this.classifier.forward(relu(this.pre_classifier.forward(rows)));
  }

  configJson(): Record<string, unknown> {
    return this.classifierJson(this.#config.source, 'DistilBertForSequenceClassification');
  }
}

export const distilBertClassifier: ClassifierKind = {
  modelType: 'distilbert',
  features: 'no token types, dense head',
  headWeight: 'classifier.weight',
  mayLack: ['pre_classifier', 'classifier'],
  rename: trunkNames(
    'distilbert',
    ['embeddings', 'transformer'],
    /^vocab_|^qa_outputs\.|\.position_ids$/,
  ),
  gguf: distilBertGguf,
  fromJson(json, options) {
    const config = distilBertConfig(json, options);
    return (weights, origin, head) =>
      new DistilBertForSequenceClassification(config, weights, origin, head);
  },
};
