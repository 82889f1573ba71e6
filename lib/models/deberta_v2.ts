/**
 * The deberta-v2 architecture, DeBERTa-v3 checkpoints included: bert's blocks with disentangled attention. Its scores are
 *
 *     (q_t k_j + q_t K_r + k_j Q_r) / sqrt(3 D).
 *
 * K_r and Q_r are projections of the embedding of the relative position r, by the key and query projections of each layer (so an
 * adapter on these acts there, too) or by separate ones. The convolution of large v2 checkpoints is not supported.
 *
 * Dimensions: N rows, C hidden, H heads, D head size, P relative positions in use.
 */
import { z } from 'zod';
import { UnsupportedError } from '../errors.ts';
import { Embedding, type LayerNorm, type Linear, LinearGroup, Module } from '../nn/index.ts';
import { relativeAttention, reshape } from '../ops/index.ts';
import { type Tensor, tensor } from '../tensor.ts';
import { type Activation, activation } from './activations.ts';
import type { ClassifierKind } from './classifier_kind.ts';
import {
  ignored,
  optionalRows,
  optionalSize,
  type ParseConfigOptions,
  parseConfig,
  positionCount,
  refuseValues,
} from './config_keys.ts';
import {
  type EncoderConfig,
  EncoderEmbeddings,
  encoderClassifier,
  kBertBlock,
  kEncoderKeys,
  PostNormLayer,
  readEncoder,
  type Segments,
} from './encoder.ts';
import { byRelativePosition, type DebertaBuckets, debertaBucket } from './relative_positions.ts';
import { trunkNames } from './renamed_weights.ts';
import type { WeightLoader } from './weights.ts';

interface DebertaConfig extends EncoderConfig {
  readonly buckets: DebertaBuckets;
  /** Rows of the table of relative positions on either side of 0. */
  readonly span: number;
  readonly contentToPosition: boolean;
  readonly positionToContent: boolean;
  /** Whether relative positions use the projections of the content. */
  readonly sharedKeys: boolean;
  readonly normRelative: boolean;
  readonly pooling: Activation;
}

const kShape = {
  ...kEncoderKeys,
  max_position_embeddings: positionCount,
  type_vocab_size: optionalRows.nullish(),
  relative_attention: z.boolean().nullish(),
  max_relative_positions: z.int().nullish(),
  position_buckets: z.int().nullish(),
  norm_rel_ebd: z.string().nullish(),
  share_att_key: z.boolean().nullish(),
  pos_att_type: z.union([z.string(), z.array(z.string())]).nullish(),
  position_biased_input: z.boolean().nullish(),
  pooler_hidden_act: z.string().nullish(),
  pooler_hidden_size: optionalSize,
  embedding_size: optionalSize,
  attention_head_size: optionalSize,
  conv_kernel_size: z.int().nullish(),
  // Dropout is not applied; the rest is of the convolution that is refused, and of other heads.
  ...ignored('hidden_dropout_prob attention_probs_dropout_prob pooler_dropout cls_dropout'),
  ...ignored('conv_act conv_groups legacy tie_word_embeddings'),
};
type Json = z.infer<z.ZodObject<typeof kShape>>;

function debertaConfig(json: Record<string, unknown>, options: ParseConfigOptions): DebertaConfig {
  const { path } = options;
  const config = parseConfig(kShape, json, options);
  refuseVariants(config, path);
  const positions = positionTypes(config.pos_att_type ?? [], path);
  const stated = config.max_relative_positions ?? -1;
  const maxPosition = stated < 1 ? config.max_position_embeddings : stated;
  const buckets = Math.max(config.position_buckets ?? -1, 0);
  return {
    ...readEncoder(config, { path, layerNormEps: 1e-7 }),
    buckets: { buckets, maxPosition },
    span: buckets > 0 ? buckets : maxPosition,
    contentToPosition: positions.includes('c2p'),
    positionToContent: positions.includes('p2c'),
    sharedKeys: config.share_att_key ?? false,
    normRelative: words(config.norm_rel_ebd ?? 'none').includes('layer_norm'),
    positionRows: config.position_biased_input === false ? 0 : config.max_position_embeddings,
    firstPosition: 0,
    tokenTypes: config.type_vocab_size ?? 0,
    pooling: activation(config.pooler_hidden_act ?? 'gelu', { path, key: 'pooler_hidden_act' }),
    source: json,
  };
}

function refuseVariants(config: Json, path: string): void {
  const c = config.hidden_size;
  const other = (value: number | null | undefined, usual: number) =>
    (value ?? usual) === usual ? null : value;
  refuseValues(path, {
    relative_attention:
      config.relative_attention === true ? null : (config.relative_attention ?? false),
    conv_kernel_size: (config.conv_kernel_size ?? 0) > 0 ? config.conv_kernel_size : null,
    embedding_size: other(config.embedding_size, c),
    pooler_hidden_size: other(config.pooler_hidden_size, c),
    attention_head_size: other(config.attention_head_size, c / config.num_attention_heads),
  });
}

/** One string with bars, as transformers reads it. */
const words = (stated: string): string[] =>
  stated
    .toLowerCase()
    .split('|')
    .map((word) => word.trim());

/** A list, or (transformers 4) one string with bars. */
function positionTypes(stated: string | readonly string[], path: string): readonly string[] {
  const types = typeof stated === 'string' ? words(stated) : stated;
  const unknown = types.filter((type) => !['c2p', 'p2c', ''].includes(type));
  if (unknown.length === 0) return types;
  throw new UnsupportedError(
    `${path}: pos_att_type ${unknown.join(', ')} is not supported; known: c2p, p2c`,
  );
}

/** Inputs that all layers share. */
interface Shared extends Segments {
  readonly relative: Tensor; // (P,C)
  readonly index: Tensor; // (2L-1) i32: rows of `relative` by key - query
}

class DisentangledSelfAttention extends Module {
  readonly query_proj: Linear;
  readonly key_proj: Linear;
  readonly value_proj: Linear;
  readonly pos_key_proj: Linear | null;
  readonly pos_query_proj: Linear | null;
  readonly #qkv: LinearGroup;
  readonly #config: DebertaConfig;

  constructor(config: DebertaConfig, weights: WeightLoader) {
    super();
    const { hiddenSize: c, sharedKeys, contentToPosition, positionToContent } = config;
    const projection = (name: string) => weights.linear(name, [c, c], true);
    this.query_proj = projection('query_proj');
    this.key_proj = projection('key_proj');
    this.value_proj = projection('value_proj');
    this.pos_key_proj = !sharedKeys && contentToPosition ? projection('pos_key_proj') : null;
    this.pos_query_proj = !sharedKeys && positionToContent ? projection('pos_query_proj') : null;
    this.#qkv = new LinearGroup([this.query_proj, this.key_proj, this.value_proj]);
    this.#config = config;
  }

  forward(x: Tensor, { cuSeqlens, lengths, relative, index }: Shared): Tensor {
    const { numHeads: h, hiddenSize: c, contentToPosition, positionToContent } = this.#config;
    const heads = (y: Tensor) => reshape(y, [y.shape[0] as number, h, c / h]);
    const [q, k, v] = this.#qkv.forward(x).map(heads) as [Tensor, Tensor, Tensor];
    const terms = 1 + Number(contentToPosition) + Number(positionToContent);
    const attended = relativeAttention(q, k, v, {
      cuQueries: cuSeqlens,
      queryLengths: lengths,
      positionKeys: contentToPosition
        ? heads((this.pos_key_proj ?? this.key_proj).forward(relative))
        : null,
      positionQueries: positionToContent
        ? heads((this.pos_query_proj ?? this.query_proj).forward(relative))
        : null,
      index: terms > 1 ? index : null,
      scale: 1 / Math.sqrt((c / h) * terms),
    });
    return reshape(attended, x.shape);
  }
}

class DebertaEncoder extends Module {
  readonly layer: readonly PostNormLayer<Shared>[];
  readonly rel_embeddings: Embedding;
  readonly LayerNorm: LayerNorm | null;
  readonly #config: DebertaConfig;

  constructor(config: DebertaConfig, weights: WeightLoader) {
    super();
    this.layer = Array.from({ length: config.numLayers }, (_, i) => {
      const at = weights.at(`layer.${i}`);
      const self = new DisentangledSelfAttention(config, at.at('attention.self'));
      return new PostNormLayer(kBertBlock, config, at, {
        modules: { 'attention.self': self },
        attend: (x, shared: Shared) => self.forward(x, shared),
      });
    });
    this.rel_embeddings = new Embedding(
      weights.tensor('rel_embeddings.weight', [2 * config.span, config.hiddenSize]),
    );
    const { hiddenSize, layerNormEps, normRelative } = config;
    this.LayerNorm = normRelative ? weights.layerNorm('LayerNorm', hiddenSize, layerNormEps) : null;
    this.#config = config;
  }

  /** The rows of the table that sequences of this length use, and the index of each relative position among them. */
  relative(length: number): { relative: Tensor; index: Tensor } {
    const { span, buckets } = this.#config;
    const row = (keyMinusQuery: number): number =>
      Math.min(Math.max(debertaBucket(-keyMinusQuery, buckets) + span, 0), 2 * span - 1);
    const wanted = byRelativePosition(length, row);
    const first = wanted.reduce((least, at) => Math.min(least, at));
    const last = wanted.reduce((most, at) => Math.max(most, at));
    const rows = Int32Array.from({ length: last - first + 1 }, (_, i) => first + i);
    const states = this.rel_embeddings.forward(tensor(rows));
    return {
      relative: this.LayerNorm?.forward(states) ?? states,
      index: tensor(wanted.map((at) => at - first)),
    };
  }
}

/** deberta-v2 (and v3) with a linear head on the pooled first token. */
export const debertaV2Classifier: ClassifierKind = encoderClassifier({
  modelType: 'deberta-v2',
  architecture: 'DebertaV2ForSequenceClassification',
  features:
    'v2 and v3: disentangled attention, shared or separate position projections, log buckets (no convolution)',
  headWeight: 'classifier.weight',
  mayLack: ['classifier', 'pooler'],
  dropoutKeys: [
    'hidden_dropout_prob',
    'attention_probs_dropout_prob',
    'pooler_dropout',
    'cls_dropout',
  ],
  rename: trunkNames(
    'deberta',
    ['embeddings', 'encoder'],
    /^(cls|lm_predictions|mask_predictions|lm_head)\.|\.position_ids$/,
  ),
  configure: debertaConfig,
  build: (config, weights, labels) => {
    const c = config.hiddenSize;
    const at = weights.at('deberta');
    const embeddings = new EncoderEmbeddings(config, at.at('embeddings'), { typesFirst: false });
    const encoder = new DebertaEncoder(config, at.at('encoder'));
    const pooler = weights.linear('pooler.dense', [c, c], true);
    const classifier = weights.linear('classifier', [labels, c], true);
    const trunk = { 'deberta.embeddings': embeddings, 'deberta.encoder': encoder };
    return {
      embeddings,
      layers: encoder.layer,
      modules: { ...trunk, 'pooler.dense': pooler, classifier },
      shared: ({ cuSeqlens, lengths, length }) => {
        return { cuSeqlens, lengths, ...encoder.relative(length) };
      },
      classify: (rows) => classifier.forward(config.pooling(pooler.forward(rows))),
    };
  },
});
