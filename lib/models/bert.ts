/**
 * The bert architecture: post-norm blocks of bidirectional attention over learned positions and token types, a pooler on
 * the first token. Attributes are named as in the checkpoint.
 */
import { z } from 'zod';
import { UnsupportedError } from '../errors.ts';
import type { Linear, Module } from '../nn/index.ts';
import { tanh } from '../ops/index.ts';
import type { Tensor } from '../tensor.ts';
import { activation } from './activations.ts';
import { bertGguf } from './bert_gguf.ts';
import { BertLayer, BertSelfAttention, type Segments } from './bert_layers.ts';
import type { ClassifierKind } from './classifier_kind.ts';
import {
  configError,
  layerCount,
  type ParseConfigOptions,
  parseConfig,
  size,
} from './config_keys.ts';
import {
  EncoderClassifier,
  type EncoderConfig,
  EncoderEmbeddings,
  type EncoderPass,
} from './encoder.ts';
import type { ModelInputs, ModelOrigin } from './model.ts';
import { moduleOf } from './module_of.ts';
import { trunkNames } from './renamed_weights.ts';
import type { HeadOrigin } from './sequence_classifier.ts';
import type { WeightLoader } from './weights.ts';

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
): EncoderConfig {
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

/** The embeddings and the layers, without pooler and head. */
export function bertTrunk(config: EncoderConfig, weights: WeightLoader) {
  const layer = Array.from({ length: config.numLayers }, (_, i) => {
    const at = weights.at(`encoder.layer.${i}`);
    return new BertLayer(new BertSelfAttention(config, at.at('attention.self')), config, at);
  });
  return {
    embeddings: new EncoderEmbeddings(config, weights.at('embeddings'), { typesFirst: true }),
    encoder: moduleOf({ layer }),
  };
}

export type BertTrunk = ReturnType<typeof bertTrunk>;

/** Base class of the classifiers on a bert-like trunk. */
export abstract class BertClassifier extends EncoderClassifier<Segments> {
  protected readonly dropoutKeys = [
    'hidden_dropout_prob',
    'attention_probs_dropout_prob',
    'classifier_dropout',
  ];

  protected abstract get trunk(): BertTrunk;

  protected pass(inputs: ModelInputs): EncoderPass<Segments> {
    const { embeddings, encoder } = this.trunk;
    const { cuSeqlens, lengths } = inputs;
    const embedded = embeddings.forward(inputs);
    return { layers: encoder.layer, embedded, shared: { cuSeqlens, lengths } };
  }
}

/** bert with a linear head on the pooled first token. */
export class BertForSequenceClassification extends BertClassifier {
  readonly modelType = 'bert';
  protected readonly architecture = 'BertForSequenceClassification';
  readonly bert: Module & BertTrunk & { readonly pooler: Module & { readonly dense: Linear } };
  readonly classifier: Linear;

  constructor(config: EncoderConfig, weights: WeightLoader, origin: ModelOrigin, head: HeadOrigin) {
    super(config, origin, head);
    const c = config.hiddenSize;
    const at = weights.at('bert');
    const pooler = moduleOf({ dense: at.linear('pooler.dense', [c, c], true) });
    this.bert = moduleOf({ ...bertTrunk(config, at), pooler });
    this.classifier = weights.linear('classifier', [head.numLabels, c], true);
  }

  protected get trunk(): BertTrunk {
    return this.bert;
  }

  protected classify(rows: Tensor): Tensor {
    return this.classifier.forward(tanh(this.bert.pooler.dense.forward(rows)));
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
