/**
 * The distilbert architecture: bert's post-norm blocks under other names, without token types and pooler; the head is a
 * dense layer with relu and a projection on the first token.
 */
import { z } from 'zod';
import { relu } from '../ops/index.ts';
import { activation } from './activations.ts';
import { bertTrunk } from './bert.ts';
import { distilBertGguf, kDistilBertBlock } from './bert_gguf.ts';
import type { ClassifierKind } from './classifier_kind.ts';
import { ignored, layerCount, type ParseConfigOptions, parseConfig, size } from './config_keys.ts';
import { checkHeads, type EncoderConfig, encoderClassifier } from './encoder.ts';
import { trunkNames } from './renamed_weights.ts';

const kShape = {
  vocab_size: size,
  dim: size,
  hidden_dim: size,
  n_layers: layerCount,
  n_heads: size,
  max_position_embeddings: size,
  activation: z.string().nullish(),
  // Dropout is not applied; a sinusoidal table stands in the file like a learned one; the rest is of other heads.
  ...ignored(
    'dropout attention_dropout seq_classif_dropout qa_dropout sinusoidal_pos_embds tie_weights_ tie_word_embeddings',
  ),
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

/** distilbert with its two-layer head on the first token. */
export const distilBertClassifier: ClassifierKind = encoderClassifier({
  modelType: 'distilbert',
  architecture: 'DistilBertForSequenceClassification',
  features: 'no token types, dense head',
  headWeight: 'classifier.weight',
  headPaths: ['pre_classifier', 'classifier'],
  mayLack: ['pre_classifier', 'classifier'],
  dropoutKeys: ['dropout', 'attention_dropout', 'seq_classif_dropout'],
  rename: trunkNames(
    'distilbert',
    ['embeddings', 'transformer'],
    /^vocab_|^qa_outputs\.|\.position_ids$/,
  ),
  gguf: distilBertGguf,
  configure: distilBertConfig,
  build: (config, weights, labels) => {
    const trunk = { name: 'distilbert', layers: 'transformer.layer', block: kDistilBertBlock };
    const parts = bertTrunk(config, weights, trunk);
    const c = config.hiddenSize;
    const pre_classifier = weights.linear('pre_classifier', [c, c], true);
    const classifier = weights.linear('classifier', [labels, c], true);
    return {
      ...parts,
      modules: { ...parts.modules, pre_classifier, classifier },
      classify: (rows) => classifier.forward(relu(pre_classifier.forward(rows))),
    };
  },
});
