/**
 * The roberta architecture: bert's blocks, positions that start behind the padding id, no pooler; the head is a dense
 * layer with tanh and a projection on the first token.
 */

import type { Linear, Module } from '../nn/index.ts';
import { tanh } from '../ops/index.ts';
import type { Tensor } from '../tensor.ts';
import { BertClassifier, type BertTrunk, bertConfig, bertTrunk } from './bert.ts';
import { robertaGguf } from './bert_gguf.ts';
import type { ClassifierKind } from './classifier_kind.ts';
import { configError } from './config_keys.ts';
import type { EncoderConfig } from './encoder.ts';
import type { ModelOrigin } from './model.ts';
import { moduleOf } from './module_of.ts';
import { trunkNames } from './renamed_weights.ts';
import type { HeadOrigin } from './sequence_classifier.ts';
import type { WeightLoader } from './weights.ts';

/** roberta with its two-layer head on the first token. */
export class RobertaForSequenceClassification extends BertClassifier {
  readonly modelType = 'roberta';
  protected readonly architecture = 'RobertaForSequenceClassification';
  readonly roberta: Module & BertTrunk;
  readonly classifier: Module & { readonly dense: Linear; readonly out_proj: Linear };

  constructor(config: EncoderConfig, weights: WeightLoader, origin: ModelOrigin, head: HeadOrigin) {
    super(config, origin, head);
    const c = config.hiddenSize;
    this.roberta = moduleOf(bertTrunk(config, weights.at('roberta')));
    this.classifier = moduleOf({
      dense: weights.linear('classifier.dense', [c, c], true),
      out_proj: weights.linear('classifier.out_proj', [head.numLabels, c], true),
    });
  }

  protected get trunk(): BertTrunk {
    return this.roberta;
  }

  protected classify(rows: Tensor): Tensor {
    const { dense, out_proj } = this.classifier;
    return out_proj.forward(tanh(dense.forward(rows)));
  }
}

export const robertaClassifier: ClassifierKind = {
  modelType: 'roberta',
  features: 'positions from the padding id on, dense head',
  headWeight: 'classifier.out_proj.weight',
  mayLack: ['classifier'],
  rename: trunkNames(
    'roberta',
    ['embeddings', 'encoder', 'pooler'],
    /^lm_head\.|^roberta\.pooler\.|\.position_ids$/,
  ),
  gguf: robertaGguf,
  fromJson(json, options) {
    const padding = json.pad_token_id ?? 1;
    if (typeof padding !== 'number' || !Number.isInteger(padding) || padding < 0) {
      const { path } = options;
      throw configError(path, 'pad_token_id must be a whole number, after which positions begin');
    }
    const config = bertConfig(json, options, { firstPosition: padding + 1 });
    if (config.firstPosition >= config.positionRows) {
      throw configError(
        options.path,
        `pad_token_id ${padding} leaves no row of the ${config.positionRows} in max_position_embeddings, since positions begin after it`,
      );
    }
    return (weights, origin, head) =>
      new RobertaForSequenceClassification(config, weights, origin, head);
  },
};
