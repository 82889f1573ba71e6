/** The parts that the classifiers on encoders share: their embeddings, their pass, and what they say of their configuration. */
import { Embedding, type LayerNorm, Module } from '../nn/index.ts';
import { add, zeros } from '../ops/index.ts';
import type { Tensor } from '../tensor.ts';
import type { BlockConfig } from './bert_layers.ts';
import { statedRates } from './dropout_rates.ts';
import { type Layer, type LayerRun, runLayers } from './layers.ts';
import type { ModelInputs, ModelOrigin } from './model.ts';
import { type HeadOrigin, SequenceClassifier } from './sequence_classifier.ts';
import type { WeightLoader } from './weights.ts';

export interface EncoderConfig extends BlockConfig {
  readonly vocabSize: number;
  readonly numLayers: number;
  /** Rows of the table of absolute positions; 0: there is none. */
  readonly positionRows: number;
  /** The first row of the position table that is used. */
  readonly firstPosition: number;
  /** Rows of the table of token types; 0: there is none. */
  readonly tokenTypes: number;
  /** The keys of config.json as they were read, for writing it again. */
  readonly source: Readonly<Record<string, unknown>>;
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

/** A pass of an encoder's layers over embedded rows. */
export interface EncoderPass<S> {
  readonly layers: readonly Layer<S>[];
  readonly embedded: Tensor; // (N,C)
  readonly shared: LayerRun<S>['shared'];
}

/** Base class of the classifiers on an encoder; `S` is what its layers share. */
export abstract class EncoderClassifier<S> extends SequenceClassifier {
  /** transformers' class, written into config.json. */
  protected abstract readonly architecture: string;
  /** Keys of the rates of dropout, which is not applied. */
  protected abstract readonly dropoutKeys: readonly string[];

  constructor(
    readonly config: EncoderConfig,
    origin: ModelOrigin,
    head: HeadOrigin,
  ) {
    super(origin, head);
  }

  /** The pass over a batch. */
  protected abstract pass(inputs: ModelInputs): EncoderPass<S>;

  get vocabSize(): number {
    return this.config.vocabSize;
  }

  get headPaths(): readonly string[] {
    return ['classifier'];
  }

  override get dropoutRates(): Readonly<Record<string, number>> {
    return statedRates(this.config.source, this.dropoutKeys);
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
    return this.classifierJson(this.config.source, this.architecture);
  }

  protected hidden(inputs: ModelInputs): Tensor {
    const { layers, embedded, shared } = this.pass(inputs);
    const { keepOf: keep, onLayer } = this;
    return runLayers(layers, embedded, {
      shared,
      last: null,
      wanted: inputs.wanted,
      keep,
      onLayer,
    });
  }
}
