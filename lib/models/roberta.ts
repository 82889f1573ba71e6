/**
 * The roberta architecture: bert's blocks, positions that start behind the padding id, no pooler; the head is a dense
 * layer with tanh and a projection on the first token.
 */
import { tanh } from '../ops/index.ts';
import { bertConfig, bertTrunk, kBertDropouts } from './bert.ts';
import { robertaGguf } from './bert_gguf.ts';
import type { ClassifierKind } from './classifier_kind.ts';
import { configError, type ParseConfigOptions } from './config_keys.ts';
import { type EncoderConfig, encoderClassifier, kBertBlock } from './encoder.ts';
import { trunkNames } from './renamed_weights.ts';

function robertaConfig(json: Record<string, unknown>, options: ParseConfigOptions): EncoderConfig {
  const { path } = options;
  const padding = json.pad_token_id ?? 1;
  if (typeof padding !== 'number' || !Number.isInteger(padding) || padding < 0) {
    throw configError(path, 'pad_token_id must be a whole number, after which positions begin');
  }
  const config = bertConfig(json, options, { firstPosition: padding + 1 });
  if (config.firstPosition < config.positionRows) return config;
  throw configError(
    path,
    `pad_token_id ${padding} leaves no row of the ${config.positionRows} in max_position_embeddings, since positions begin after it`,
  );
}

/** roberta with its two-layer head on the first token. */
export const robertaClassifier: ClassifierKind = encoderClassifier({
  modelType: 'roberta',
  architecture: 'RobertaForSequenceClassification',
  features: 'positions from the padding id on, dense head',
  headWeight: 'classifier.out_proj.weight',
  mayLack: ['classifier'],
  dropoutKeys: kBertDropouts,
  rename: trunkNames(
    'roberta',
    ['embeddings', 'encoder', 'pooler'],
    /^lm_head\.|^roberta\.pooler\.|\.position_ids$/,
  ),
  gguf: robertaGguf,
  configure: robertaConfig,
  build: (config, weights, labels) => {
    const trunk = { name: 'roberta', layers: 'encoder.layer', block: kBertBlock };
    const parts = bertTrunk(config, weights, trunk);
    const c = config.hiddenSize;
    const dense = weights.linear('classifier.dense', [c, c], true);
    const projection = weights.linear('classifier.out_proj', [labels, c], true);
    const head = { 'classifier.dense': dense, 'classifier.out_proj': projection };
    return {
      ...parts,
      modules: { ...parts.modules, ...head },
      classify: (rows) => projection.forward(tanh(dense.forward(rows))),
    };
  },
});
