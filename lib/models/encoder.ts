/**
 * The parts that the classifiers on encoders share: reading of their configuration, their embeddings, their blocks of bidirectional
 * attention, and the model itself, which a family describes. Dimensions: N rows, C hidden, F mlp width.
 */
import { z } from 'zod';
import { Embedding, type LayerNorm, type Linear, LinearGroup, Module } from '../nn/index.ts';
import { add, attention, reshape, zeros } from '../ops/index.ts';
import type { Tensor } from '../tensor.ts';
import { type Activation, activation } from './activations.ts';
import type { ClassifierKind } from './classifier_kind.ts';
import { configError, layerCount, type ParseConfigOptions, size } from './config_keys.ts';
import { statedRates } from './dropout_rates.ts';
import { type Branch, Layer, runLayers } from './layers.ts';
import type { ModelInputs, ModelOrigin } from './model.ts';
import { type HeadOrigin, SequenceClassifier } from './sequence_classifier.ts';
import type { WeightLoader } from './weights.ts';

export interface EncoderConfig {
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly numLayers: number;
  readonly numHeads: number;
  readonly layerNormEps: number;
  readonly activation: Activation;
  /** Rows of the table of absolute positions; 0: there is none. */
  readonly positionRows: number;
  /** The first row of the position table that is used. */
  readonly firstPosition: number;
  /** Rows of the table of token types; 0: there is none. */
  readonly tokenTypes: number;
  /** The keys of config.json as they were read, for writing it again. */
  readonly source: Readonly<Record<string, unknown>>;
}

/** Keys that the configurations of BERT and DeBERTa share. */
export const kEncoderKeys = {
  vocab_size: size,
  hidden_size: size,
  intermediate_size: size,
  num_hidden_layers: layerCount,
  num_attention_heads: size,
  hidden_act: z.string().nullish(),
  layer_norm_eps: z.number().positive().nullish(),
};

/** The part of a configuration that {@link kEncoderKeys} say. @throws FormatError, UnsupportedError for values that do not fit together */
export function readEncoder(
  keys: z.infer<z.ZodObject<typeof kEncoderKeys>>,
  { path, layerNormEps }: { path: string; layerNormEps: number },
): Omit<EncoderConfig, 'positionRows' | 'firstPosition' | 'tokenTypes' | 'source'> {
  checkHeads(keys, ['hidden_size', 'num_attention_heads'], path);
  return {
    vocabSize: keys.vocab_size,
    hiddenSize: keys.hidden_size,
    intermediateSize: keys.intermediate_size,
    numLayers: keys.num_hidden_layers,
    numHeads: keys.num_attention_heads,
    layerNormEps: keys.layer_norm_eps ?? layerNormEps,
    activation: activation(keys.hidden_act ?? 'gelu', { path, key: 'hidden_act' }),
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

/** The normalised sum of the embeddings of ids, positions and token types. */
export class EncoderEmbeddings extends Module {
  readonly word_embeddings: Embedding;
  readonly position_embeddings: Embedding | null;
  readonly token_type_embeddings: Embedding | null;
  readonly LayerNorm: LayerNorm;
  readonly #typesFirst: boolean;

  /** @param order the order of the reference's sum, since another one rounds differently */
  constructor(
    { vocabSize, hiddenSize, positionRows, tokenTypes, layerNormEps }: EncoderConfig,
    weights: WeightLoader,
    order: { typesFirst: boolean },
  ) {
    super();
    this.#typesFirst = order.typesFirst;
    const table = (name: string, rows: number): Embedding =>
      new Embedding(weights.tensor(`${name}.weight`, [rows, hiddenSize]));
    this.word_embeddings = table('word_embeddings', vocabSize);
    this.position_embeddings = positionRows > 0 ? table('position_embeddings', positionRows) : null;
    this.token_type_embeddings = tokenTypes > 0 ? table('token_type_embeddings', tokenTypes) : null;
    this.LayerNorm = weights.layerNorm('LayerNorm', hiddenSize, layerNormEps);
  }

  /** (N,C) */
  forward({ ids, positions, tokenTypes }: ModelInputs): Tensor {
    const places = this.position_embeddings?.forward(positions);
    const types = this.token_type_embeddings?.forward(
      tokenTypes ?? zeros(ids.shape, { dtype: 'i32' }),
    );
    const parts = this.#typesFirst ? [types, places] : [places, types];
    const sum = parts.reduce<Tensor>(
      (before, part) => (part === undefined ? before : add(before, part)),
      this.word_embeddings.forward(ids),
    );
    return this.LayerNorm.forward(sum);
  }
}

/** The bounds of a batch's segments, for bidirectional attention. */
export interface Segments {
  readonly cuSeqlens: Tensor; // (B+1) i32
  readonly lengths: Tensor | null; // (B) i32
}

/** Paths of the modules of a block, by their names in GGUF files. */
export const kBertBlock = {
  attn_q: 'attention.self.query',
  attn_k: 'attention.self.key',
  attn_v: 'attention.self.value',
  attn_output: 'attention.output.dense',
  attn_output_norm: 'attention.output.LayerNorm',
  ffn_up: 'intermediate.dense',
  ffn_down: 'output.dense',
  layer_output_norm: 'output.LayerNorm',
};
export type BlockPaths = Readonly<typeof kBertBlock>;

/** The attention of a block up to its output projection. */
export interface BlockAttention<S> {
  /** Its modules by their paths in the block. */
  readonly modules: Readonly<Record<string, Module>>;
  /** x (N,C) -> (N,C) */
  attend(x: Tensor, shared: S): Tensor;
}

/** Attention of every row to all rows of its segment, with a projection each for q, k and v. */
export function attentionBothWays(
  paths: BlockPaths,
  { hiddenSize: c, numHeads }: EncoderConfig,
  weights: WeightLoader,
): BlockAttention<Segments> {
  const named = [paths.attn_q, paths.attn_k, paths.attn_v].map(
    (path) => [path, weights.linear(path, [c, c], true)] as const,
  );
  const qkv = new LinearGroup(named.map(([, linear]) => linear));
  return {
    modules: Object.fromEntries(named),
    attend: (x, segments) => {
      const shape = [x.shape[0] as number, numHeads, c / numHeads];
      const heads = qkv.forward(x).map((y) => reshape(y, shape));
      const [q, k, v] = heads as [Tensor, Tensor, Tensor];
      return reshape(attention(q, k, v, { ...segments, causal: false }), x.shape);
    },
  };
}

/** The block of encoders: attention and a mlp, each with a norm of its sum with the residual. */
export class PostNormLayer<S> extends Layer<S> {
  readonly #branches: readonly Branch<S>[];

  constructor(
    paths: BlockPaths,
    { hiddenSize: c, intermediateSize: f, layerNormEps, activation }: EncoderConfig,
    weights: WeightLoader,
    { modules, attend }: BlockAttention<S>,
  ) {
    super();
    const linear = (path: string, shape: [number, number]): Linear =>
      weights.linear(path, shape, true);
    const norm = (path: string): LayerNorm => weights.layerNorm(path, c, layerNormEps);
    const [out, outNorm] = [linear(paths.attn_output, [c, c]), norm(paths.attn_output_norm)];
    const [up, down] = [linear(paths.ffn_up, [f, c]), linear(paths.ffn_down, [c, f])];
    const downNorm = norm(paths.layer_output_norm);
    this.place({
      ...modules,
      [paths.attn_output]: out,
      [paths.attn_output_norm]: outNorm,
      [paths.ffn_up]: up,
      [paths.ffn_down]: down,
      [paths.layer_output_norm]: downNorm,
    });
    this.#branches = [
      { postNorm: outNorm, attention: attend, forward: (attended) => out.forward(attended) },
      { postNorm: downNorm, forward: (x) => down.forward(activation(up.forward(x))) },
    ];
  }

  branches(): readonly Branch<S>[] {
    return this.#branches;
  }
}

/** The parts of a classifier on an encoder; `S` is what its layers share. */
export interface EncoderParts<S> {
  readonly embeddings: EncoderEmbeddings;
  readonly layers: readonly Layer<S>[];
  /** All modules by their paths in the checkpoint. */
  readonly modules: Readonly<Record<string, Module | readonly Module[]>>;
  /** The inputs of the layers besides their rows. */
  shared(inputs: ModelInputs): S;
  /** Applies the head to rows (B,C) -> (B,D) */
  classify(rows: Tensor): Tensor;
}

/** A family of encoders. */
export interface EncoderFamily<C extends EncoderConfig, S>
  extends Omit<ClassifierKind, 'fromJson'> {
  /** transformers' class, written into config.json. */
  readonly architecture: string;
  /** Keys of the rates of dropout, which is not applied. */
  readonly dropoutKeys: readonly string[];
  /** Modules that make up the head. Default: `classifier`. */
  readonly headPaths?: readonly string[];
  /** @throws FormatError, UnsupportedError for a configuration that is wrong or not understood */
  configure(json: Record<string, unknown>, options: ParseConfigOptions): C;
  /** @param labels D */
  build(config: C, weights: WeightLoader, labels: number): EncoderParts<S>;
}

/** The classifier of a family of encoders. */
export function encoderClassifier<C extends EncoderConfig, S>(
  family: EncoderFamily<C, S>,
): ClassifierKind {
  return {
    ...family,
    fromJson: (json, options) => {
      const config = family.configure(json, options);
      return (weights, origin, head) => {
        const parts = family.build(config, weights, head.numLabels);
        return new EncoderClassifier({ family, config, parts }, origin, head);
      };
    },
  };
}

/** An encoder with a head on the first token of each sequence. */
class EncoderClassifier<C extends EncoderConfig, S> extends SequenceClassifier {
  readonly modelType: string;
  readonly config: C;
  readonly #family: EncoderFamily<C, S>;
  readonly #parts: EncoderParts<S>;

  constructor(
    { family, config, parts }: { family: EncoderFamily<C, S>; config: C; parts: EncoderParts<S> },
    origin: ModelOrigin,
    head: HeadOrigin,
  ) {
    super(origin, head);
    this.modelType = family.modelType;
    this.config = config;
    this.#family = family;
    this.#parts = parts;
    this.place(parts.modules);
  }

  get vocabSize(): number {
    return this.config.vocabSize;
  }

  get headPaths(): readonly string[] {
    return this.#family.headPaths ?? ['classifier'];
  }

  override get dropoutRates(): Readonly<Record<string, number>> {
    return statedRates(this.config.source, this.#family.dropoutKeys);
  }

  protected override get firstPosition(): number {
    return this.config.firstPosition;
  }

  protected override get maxPositions(): number {
    const { positionRows, firstPosition } = this.config;
    return positionRows > 0 ? positionRows - firstPosition : Number.POSITIVE_INFINITY;
  }

  protected override get tokenTypeCount(): number {
    return this.config.tokenTypes;
  }

  configJson(): Record<string, unknown> {
    return this.classifierJson(this.config.source, this.#family.architecture);
  }

  protected hidden(inputs: ModelInputs): Tensor {
    const { embeddings, layers, shared } = this.#parts;
    return runLayers(layers, embeddings.forward(inputs), {
      shared: shared(inputs),
      last: null,
      wanted: inputs.wanted,
      keep: this.keepOf,
      onLayer: this.onLayer,
    });
  }

  protected classify(rows: Tensor): Tensor {
    return this.#parts.classify(rows);
  }
}
