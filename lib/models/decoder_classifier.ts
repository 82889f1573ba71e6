/**
 * A decoder with a classification head: `score`, without bias, on the last token of each sequence, the only one that has
 * seen all others.
 */
import { ArgumentError } from '../errors.ts';
import type { Linear } from '../nn/index.ts';
import type { Tensor } from '../tensor.ts';
import type { ModelBatch } from './batch.ts';
import type { ClassifierKind } from './classifier_kind.ts';
import { configJsonOf, type ParseConfigOptions } from './config_keys.ts';
import { Decoder, type DecoderConfig, type DecoderFamily } from './decoder.ts';
import type { ModelInputs, ModelOrigin } from './model.ts';
import { trunkNames } from './renamed_weights.ts';
import { checkNotEmpty, type HeadOrigin, SequenceClassifier } from './sequence_classifier.ts';
import type { WeightLoader } from './weights.ts';

class DecoderForSequenceClassification extends SequenceClassifier {
  readonly modelType: string;
  readonly model: Decoder;
  readonly score: Linear;
  readonly #config: DecoderConfig;
  readonly #architecture: string;

  constructor(
    family: DecoderFamily,
    config: DecoderConfig,
    weights: WeightLoader,
    { origin, head }: { origin: ModelOrigin; head: HeadOrigin },
  ) {
    super(origin, head);
    this.modelType = family.modelType;
    this.#config = config;
    this.#architecture = family.architecture.replace('ForCausalLM', 'ForSequenceClassification');
    this.model = new Decoder(config, weights.at('model'), family.makeLayer);
    this.score = weights.linear('score', [head.numLabels, config.hiddenSize], false);
  }

  get vocabSize(): number {
    return this.#config.vocabSize;
  }

  get headPaths(): readonly string[] {
    return ['score'];
  }

  override get configuredPositions(): number {
    return this.#config.maxPositions;
  }

  protected override get sharesRows(): boolean {
    return true;
  }

  protected hidden(inputs: ModelInputs): Tensor {
    return this.model.forward(inputs, this);
  }

  protected classify(rows: Tensor): Tensor {
    return this.score.forward(rows);
  }

  /**
   * The last row of each sequence that is not padding, by `lengths`.
   * @throws ArgumentError for a sequence that ends in the padding id although no lengths say that it is padded
   */
  protected override headRows({ cuSeqlens, lengths, inputIds }: ModelBatch): Int32Array {
    checkNotEmpty(cuSeqlens, lengths);
    if (lengths !== undefined) {
      return lengths.map((length, b) => (cuSeqlens[b] as number) + length - 1);
    }
    const last = cuSeqlens.slice(1).map((end) => end - 1);
    const padding = this.#paddingId();
    last.forEach((row, b) => {
      if (padding === null || inputIds[row] !== padding) return;
      throw new ArgumentError(
        `logits: sequence ${b} ends in the padding id ${padding}, but a decoder classifies on the last token; ` +
          'leave the padding out, or give the batch lengths',
      );
    });
    return last;
  }

  /** The id that is used for padding alone; null: there is none. */
  #paddingId(): number | null {
    const { pad_token_id: padding, eos_token_id: end } = this.#config.source;
    const used = [end].flat().includes(padding);
    return typeof padding === 'number' && !used ? padding : null;
  }

  configJson(): Record<string, unknown> {
    const [architecture, { source, tied }] = [this.#architecture, this.#config];
    const model = { modelType: this.modelType, architecture, dtypeName: this.dtypeName, tied };
    return this.classifierJson(configJsonOf(source, model), architecture);
  }

  override dispose(): void {
    super.dispose();
    this.model.dispose();
  }
}

/** The classifier of a family that is a Decoder with its own configuration. */
export function decoderClassifier(
  family: DecoderFamily,
  configure: (json: Record<string, unknown>, options: ParseConfigOptions) => DecoderConfig,
): ClassifierKind {
  return {
    modelType: family.modelType,
    features: 'the last token',
    headWeight: 'score.weight',
    mayLack: ['score'],
    rename: trunkNames('model', ['embed_tokens', 'layers', 'norm'], /^lm_head\./),
    fromJson(json, options) {
      const config = configure(json, options);
      return (weights, origin, head) =>
        new DecoderForSequenceClassification(family, config, weights, { origin, head });
    },
  };
}
