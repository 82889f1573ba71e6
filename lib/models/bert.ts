/**
 * The bert architecture: post-norm blocks of bidirectional attention over learned positions and token types, a pooler on
 * the first token. Modules are named as in the checkpoint.
 */
import { z } from 'zod';
import { UnsupportedError } from '../errors.ts';
import { tanh } from '../ops/index.ts';
import { bertGguf } from './bert_gguf.ts';
import type { ClassifierKind } from './classifier_kind.ts';
import { ignored, type ParseConfigOptions, parseConfig, size } from './config_keys.ts';
import {
  attentionBothWays,
  type BlockPaths,
  type EncoderConfig,
  EncoderEmbeddings,
  encoderClassifier,
  kBertBlock,
  kEncoderKeys,
  PostNormLayer,
  readEncoder,
} from './encoder.ts';
import type { ModelInputs } from './model.ts';
import { trunkNames } from './renamed_weights.ts';
import type { WeightLoader } from './weights.ts';

const rate = z.number().nullish(); // dropout, which is not applied
const kShape = {
  ...kEncoderKeys,
  max_position_embeddings: size,
  type_vocab_size: size,
  position_embedding_type: z.string().nullish(),
  tie_word_embeddings: z.boolean().nullish(), // of a masked-language head
  hidden_dropout_prob: rate,
  attention_probs_dropout_prob: rate,
  classifier_dropout: rate,
  gradient_checkpointing: z.boolean().nullish(),
  // Keys of the TensorFlow code that some files came from; the pooler has one dense layer and tanh whatever they say.
  ...ignored(
    'directionality pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type',
  ),
};

/** Keys of the rates of dropout of bert and of models that are built like it. */
export const kBertDropouts = [
  'hidden_dropout_prob',
  'attention_probs_dropout_prob',
  'classifier_dropout',
];

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
  const keys = parseConfig(kShape, json, options);
  const kind = keys.position_embedding_type ?? 'absolute';
  if (kind !== 'absolute') {
    throw new UnsupportedError(
      `${path}: position_embedding_type "${kind}" is not supported; known: absolute`,
    );
  }
  if (json.is_decoder === true)
    throw new UnsupportedError(
      `${path}: is_decoder true is not supported; choose a model that is an encoder`,
    );
  return {
    ...readEncoder(keys, { path, layerNormEps: 1e-12 }),
    positionRows: keys.max_position_embeddings,
    firstPosition,
    tokenTypes: keys.type_vocab_size,
    source: json,
  };
}

/** The embeddings and the layers of bert and of models that are built like it, without pooler and head. */
export function bertTrunk(
  config: EncoderConfig,
  weights: WeightLoader,
  { name, layers: path, block }: { name: string; layers: string; block: BlockPaths },
) {
  const at = weights.at(name);
  const embeddings = new EncoderEmbeddings(config, at.at('embeddings'), { typesFirst: true });
  const layers = Array.from({ length: config.numLayers }, (_, i) => {
    const own = at.at(`${path}.${i}`);
    return new PostNormLayer(block, config, own, attentionBothWays(block, config, own));
  });
  return {
    embeddings,
    layers,
    modules: { [`${name}.embeddings`]: embeddings, [`${name}.${path}`]: layers },
    shared: ({ cuSeqlens, lengths }: ModelInputs) => ({ cuSeqlens, lengths }),
  };
}

/** bert with a linear head on the pooled first token. */
export const bertClassifier: ClassifierKind = encoderClassifier({
  modelType: 'bert',
  architecture: 'BertForSequenceClassification',
  features: 'token types, pooler',
  headWeight: 'classifier.weight',
  mayLack: ['classifier', 'bert.pooler'],
  dropoutKeys: kBertDropouts,
  rename: trunkNames('bert', ['embeddings', 'encoder', 'pooler'], /^cls\.|\.position_ids$/),
  gguf: bertGguf,
  configure: bertConfig,
  build: (config, weights, labels) => {
    const trunk = { name: 'bert', layers: 'encoder.layer', block: kBertBlock };
    const parts = bertTrunk(config, weights, trunk);
    const c = config.hiddenSize;
    const pooler = weights.linear('bert.pooler.dense', [c, c], true);
    const classifier = weights.linear('classifier', [labels, c], true);
    return {
      ...parts,
      modules: { ...parts.modules, 'bert.pooler.dense': pooler, classifier },
      classify: (rows) => classifier.forward(tanh(pooler.forward(rows))),
    };
  },
});
