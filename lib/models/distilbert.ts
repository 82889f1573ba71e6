/**
 * The distilbert architecture: bert's post-norm blocks under other names, without token types and pooler; the head is a
 * dense layer with relu and a projection on the first token. Dimensions as in bert_layers.ts.
 */
import { z } from 'zod';
import { type LayerNorm, type Linear, LinearGroup } from '../nn/index.ts';
import { relu } from '../ops/index.ts';
import type { Tensor } from '../tensor.ts';
import { activation } from './activations.ts';
import { checkHeads } from './bert.ts';
import { distilBertGguf } from './bert_gguf.ts';
import { attendBothWays, type BlockConfig, type Segments } from './bert_layers.ts';
import type { ClassifierKind } from './classifier_kind.ts';
import { layerCount, type ParseConfigOptions, parseConfig, size } from './config_keys.ts';
import {
  EncoderClassifier,
  type EncoderConfig,
  EncoderEmbeddings,
  type EncoderPass,
} from './encoder.ts';
import { type Branch, Layer } from './layers.ts';
import type { ModelInputs, ModelOrigin } from './model.ts';
import { moduleOf } from './module_of.ts';
import { trunkNames } from './renamed_weights.ts';
import type { HeadOrigin } from './sequence_classifier.ts';
import type { WeightLoader } from './weights.ts';

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
): EncoderConfig {
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
    firstPosition: 0,
    tokenTypes: 0,
    source: json,
  };
}

class Block extends Layer<Segments> {
  readonly attention;
  readonly sa_layer_norm: LayerNorm;
  readonly ffn;
  readonly output_layer_norm: LayerNorm;
  readonly #qkv: LinearGroup;
  readonly #config: BlockConfig;

  constructor(config: BlockConfig, weights: WeightLoader) {
    super();
    const { hiddenSize: c, intermediateSize: f, layerNormEps: eps } = config;
    const projection = (name: string) => weights.linear(`attention.${name}`, [c, c], true);
    this.attention = moduleOf({
      q_lin: projection('q_lin'),
      k_lin: projection('k_lin'),
      v_lin: projection('v_lin'),
      out_lin: projection('out_lin'),
    });
    this.sa_layer_norm = weights.layerNorm('sa_layer_norm', c, eps);
    this.ffn = moduleOf({
      lin1: weights.linear('ffn.lin1', [f, c], true),
      lin2: weights.linear('ffn.lin2', [c, f], true),
    });
    this.output_layer_norm = weights.layerNorm('output_layer_norm', c, eps);
    const { q_lin, k_lin, v_lin } = this.attention;
    this.#qkv = new LinearGroup([q_lin, k_lin, v_lin]);
    this.#config = config;
  }

  branches(): readonly Branch<Segments>[] {
    const { numHeads, activation } = this.#config;
    const { lin1, lin2 } = this.ffn;
    return [
      {
        postNorm: this.sa_layer_norm,
        attention: (x, segments) => attendBothWays(this.#qkv.forward(x), numHeads, segments),
        forward: (attended) => this.attention.out_lin.forward(attended),
      },
      {
        postNorm: this.output_layer_norm,
        forward: (x) => lin2.forward(activation(lin1.forward(x))),
      },
    ];
  }
}

/** distilbert with its two-layer head on the first token. */
export class DistilBertForSequenceClassification extends EncoderClassifier<Segments> {
  readonly modelType = 'distilbert';
  protected readonly architecture = 'DistilBertForSequenceClassification';
  protected readonly dropoutKeys = ['dropout', 'attention_dropout', 'seq_classif_dropout'];
  readonly distilbert;
  readonly pre_classifier: Linear;
  readonly classifier: Linear;

  constructor(config: EncoderConfig, weights: WeightLoader, origin: ModelOrigin, head: HeadOrigin) {
    super(config, origin, head);
    const { hiddenSize: c, numLayers } = config;
    const at = weights.at('distilbert');
    const layer = Array.from(
      { length: numLayers },
      (_, i) => new Block(config, at.at(`transformer.layer.${i}`)),
    );
    this.distilbert = moduleOf({
      embeddings: new EncoderEmbeddings(config, at.at('embeddings'), { typesFirst: true }),
      transformer: moduleOf({ layer }),
    });
    this.pre_classifier = weights.linear('pre_classifier', [c, c], true);
    this.classifier = weights.linear('classifier', [head.numLabels, c], true);
  }

  override get headPaths(): readonly string[] {
    return ['pre_classifier', 'classifier'];
  }

  protected pass(inputs: ModelInputs): EncoderPass<Segments> {
    const { embeddings, transformer } = this.distilbert;
    const { cuSeqlens, lengths } = inputs;
    const embedded = embeddings.forward(inputs);
    return { layers: transformer.layer, embedded, shared: { cuSeqlens, lengths } };
  }

  protected classify(rows: Tensor): Tensor {
    return this.classifier.forward(relu(this.pre_classifier.forward(rows)));
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
