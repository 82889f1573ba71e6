/**
 * The bert architecture: post-norm blocks of bidirectional attention over learned positions and token types, a pooler on
 * the first token. Attributes are named as in the checkpoint.
 */
import { z } from 'zod';
import { UnsupportedError } from '../errors.ts';
import { Embedding, type LayerNorm, type Linear, Module } from '../nn/index.ts';
import { add, tanh, zeros } from '../ops/index.ts';
import type { Tensor } from '../tensor.ts';
import { activation } from './activations.ts';
import { bertGguf } from './bert_gguf.ts';
import {
  BertLayer,
  BertSelfAttention,
  type BlockConfig,
  layerNorm,
  type Segments,
} from './bert_layers.ts';
import type { ClassifierKind } from './classifier_kind.ts';
import {
  configError,
  layerCount,
  type ParseConfigOptions,
  parseConfig,
  size,
} from './config_keys.ts';
import { statedRates } from './dropout_rates.ts';
import { runLayers } from './layers.ts';
import type { LayerSettings, ModelInputs, ModelOrigin } from './model.ts';
import { trunkNames } from './renamed_weights.ts';
import { type HeadOrigin, SequenceClassifier } from './sequence_classifier.ts';
import type { WeightLoader } from './weights.ts';

export interface BertConfig extends BlockConfig {
  readonly vocabSize: number;
  readonly numLayers: number;
  /** Rows of the position table. */
  readonly positionRows: number;
  /** The first row of the position table that is used. */
  readonly firstPosition: number;
  readonly tokenTypes: number;
  /** The keys of config.json as they were read, for writing it again. */
  readonly source: Readonly<Record<string, unknown>>;
}

const rate = z.number().nullish(); // dropout, which is not applied
const ignored = z.unknown().optional();
const kShape = {
  vocab_size: size,
  hidden_size: size,
  intermediate_size: size,
  num_hidden_layers: layerCount,
  num_attention_heads: size,
  max_position_embeddings: size,
  type_vocab_size: size,
  hidden_act: z.string().nullish(),
  layer_norm_eps: z.number().positive().nullish(),
  position_embedding_type: z.string().nullish(),
  tie_word_embeddings: z.boolean().nullish(), // of a masked-language head
  hidden_dropout_prob: rate,
  attention_probs_dropout_prob: rate,
  classifier_dropout: rate,
  gradient_checkpointing: z.boolean().nullish(),
  // Keys of the TensorFlow code that some files came from; the pooler has one dense layer and tanh whatever they say.
  directionality: ignored,
  pooler_fc_size: ignored,
  pooler_num_attention_heads: ignored,
  pooler_num_fc_layers: ignored,
  pooler_size_per_head: ignored,
  pooler_type: ignored,
};

/**
 * Reads the configuration of bert and of models that are built like it.
 * @param options.firstPosition row of the position table for the first token
 * @throws FormatError for values that are missing or do not fit together, UnsupportedError for what is not computed
 */
export function bertConfig(
  json: Record<string, unknown>,
  options: ParseConfigOptions,
  { firstPosition }: { firstPosition: number } = { firstPosition: 0 },
): BertConfig {
  const { path } = options;
  const config = parseConfig(kShape, json, options);
  const kind = config.position_embedding_type ?? 'absolute';
  if (kind !== 'absolute') {
    throw new UnsupportedError(
      `${path}: position_embedding_type "${kind}" is not supported; known: absolute`,
    );
  }
  if (json.is_decoder === true)
    throw new UnsupportedError(
      `${path}: is_decoder true is not supported; choose a model that is an encoder`,
    );
  checkHeads(config, ['hidden_size', 'num_attention_heads'], path);
  return {
    vocabSize: config.vocab_size,
    hiddenSize: config.hidden_size,
    intermediateSize: config.intermediate_size,
    numLayers: config.num_hidden_layers,
    numHeads: config.num_attention_heads,
    layerNormEps: config.layer_norm_eps ?? 1e-12,
    activation: activation(config.hidden_act ?? 'gelu', { path, key: 'hidden_act' }),
    positionRows: config.max_position_embeddings,
    firstPosition,
    tokenTypes: config.type_vocab_size,
    source: json,
  };
}

/** Checks that the number of heads divides the hidden size, two keys of the configuration. @throws FormatError if it does not */
export function checkHeads<K extends string>(
  config: Readonly<Record<K, number>>,
  [size, heads]: readonly [size: K, heads: K],
  path: string,
): void {
  if (config[size] % config[heads] === 0) return;
  throw configError(
    path,
    `${size} ${config[size]} must be a multiple of ${heads} ${config[heads]}`,
  );
}

class BertEmbeddings extends Module {
  readonly word_embeddings: Embedding;
  readonly position_embeddings: Embedding;
  readonly token_type_embeddings: Embedding;
  readonly LayerNorm: LayerNorm;

  constructor(config: BertConfig, weights: WeightLoader) {
    super();
    const table = (name: string, rows: number): Embedding =>
      new Embedding(weights.tensor(`${name}.weight`, [rows, config.hiddenSize]));
    this.word_embeddings = table('word_embeddings', config.vocabSize);
    this.position_embeddings = table('position_embeddings', config.positionRows);
    this.token_type_embeddings = table('token_type_embeddings', config.tokenTypes);
    this.LayerNorm = layerNorm('LayerNorm', config, weights);
  }

  /** (N,C) */
  forward({ ids, positions, tokenTypes }: ModelInputs): Tensor {
    const types = tokenTypes ?? zeros(ids.shape, { dtype: 'i32' });
    const words = add(this.word_embeddings.forward(ids), this.token_type_embeddings.forward(types));
    return this.LayerNorm.forward(add(words, this.position_embeddings.forward(positions)));
  }
}

class BertEncoder extends Module {
  readonly layer: readonly BertLayer<Segments>[];

  constructor(config: BertConfig, weights: WeightLoader) {
    super();
    this.layer = Array.from({ length: config.numLayers }, (_, i) => {
      const at = weights.at(`layer.${i}`);
      return new BertLayer(new BertSelfAttention(config, at.at('attention.self')), config, at);
    });
  }
}

/** tanh(dense(first row)) */
class BertPooler extends Module {
  readonly dense: Linear;

  constructor({ hiddenSize: c }: BertConfig, weights: WeightLoader) {
    super();
    this.dense = weights.linear('dense', [c, c], true);
  }

  forward(rows: Tensor): Tensor {
    return tanh(this.dense.forward(rows));
  }
}

/** Embeddings and layers, without pooler and head. */
export class BertTrunk extends Module {
  readonly embeddings: BertEmbeddings;
  readonly encoder: BertEncoder;

  constructor(config: BertConfig, weights: WeightLoader) {
    super();
    this.embeddings = new BertEmbeddings(config, weights.at('embeddings'));
    this.encoder = new BertEncoder(config, weights.at('encoder'));
  }

  forward(inputs: ModelInputs, { keepOf, onLayer }: LayerSettings): Tensor {
    const { cuSeqlens, lengths, wanted } = inputs;
    const embedded = this.embeddings.forward(inputs);
    return runLayers(this.encoder.layer, embedded, {
      shared: { cuSeqlens, lengths },
      last: null,
      wanted,
      keep: keepOf,
      onLayer,
    });
  }
}

class BertModel extends BertTrunk {
  readonly pooler: BertPooler;

  constructor(config: BertConfig, weights: WeightLoader) {
    super(config, weights);
    this.pooler = new BertPooler(config, weights.at('pooler'));
  }
}

/** Rates of dropout, which is not applied. */
const kDropouts = ['hidden_dropout_prob', 'attention_probs_dropout_prob', 'classifier_dropout'];

/** Base class of the classifiers on a bert-like trunk. */
export abstract class BertClassifier extends SequenceClassifier {
  readonly config: BertConfig;

  constructor(config: BertConfig, origin: ModelOrigin, head: HeadOrigin) {
    super(origin, head);
    this.config = config;
  }

  get vocabSize(): number {
    return this.config.vocabSize;
  }

  get headPaths(): readonly string[] {
    return ['classifier'];
  }

  override get dropoutRates(): Readonly<Record<string, number>> {
    return statedRates(this.config.source, kDropouts);
  }

  protected abstract get trunk(): BertTrunk;

  protected override get firstPosition(): number {
    return this.config.firstPosition;
  }

  protected override get maxPositions(): number {
    return this.config.positionRows - this.config.firstPosition;
  }

  protected override get tokenTypeCount(): number {
    return this.config.tokenTypes;
  }

  protected hidden(inputs: ModelInputs): Tensor {
    return this.trunk.forward(inputs, this);
  }
}

/** bert with a linear head on the pooled first token. */
export class BertForSequenceClassification extends BertClassifier {
  readonly modelType = 'bert';
  readonly bert: BertModel;
  readonly classifier: Linear;

  constructor(config: BertConfig, weights: WeightLoader, origin: ModelOrigin, head: HeadOrigin) {
    super(config, origin, head);
    this.bert = new BertModel(config, weights.at('bert'));
    this.classifier = weights.linear('classifier', [head.numLabels, config.hiddenSize], true);
  }

  protected get trunk(): BertTrunk {
    return this.bert;
  }

  protected classify(rows: Tensor): Tensor {
    return this.classifier.forward(this.bert.pooler.forward(rows));
  }

  configJson(): Record<string, unknown> {
    return this.classifierJson(this.config.source, 'BertForSequenceClassification');
  }
}

export const bertClassifier: ClassifierKind = {
  modelType: 'bert',
  features: 'token types, pooler',
  headWeight: 'classifier.weight',
  mayLack: ['classifier', 'bert.pooler'],
  rename: trunkNames('bert', ['embeddings', 'encoder', 'pooler'], /^cls\.|\.position_ids$/),
  gguf: bertGguf,
  fromJson(json, options) {
    const config = bertConfig(json, options);
    return (weights, origin, head) =>
      new BertForSequenceClassification(config, weights, origin, head);
  },
};
