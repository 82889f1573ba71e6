/** The interface of a model family: reading of its configuration, construction, and its names in GGUF files. */
import type { CausalLM } from './causal_lm.ts';
import type { ClassifierKind } from './classifier_kind.ts';
import type { ParseConfigOptions } from './config_keys.ts';
import { type DecoderConfig, type DecoderFamily, DecoderLM } from './decoder.ts';
import { decoderClassifier } from './decoder_classifier.ts';
import type { GgufTable } from './gguf.ts';
import type { ModelOrigin } from './model.ts';
import type { WeightLoader } from './weights.ts';

export interface MakeInput {
  readonly weights: WeightLoader;
  readonly origin: ModelOrigin;
  /** Whether the head is the embedding: by the configuration, unless the file holds a head that differs. */
  readonly tied: boolean;
}

/** A configuration that was read and checked. */
export interface ConfiguredModel {
  /** Whether the configuration ties the head to the embedding. */
  readonly tied: boolean;
  readonly causalLM: (input: MakeInput) => CausalLM;
}

/** Reads config.json. @throws FormatError, UnsupportedError for one that is wrong or not understood */
export type Configure<T> = (json: Record<string, unknown>, options: ParseConfigOptions) => T;

export interface ModelFamily {
  readonly modelType: string;
  /** Supported features, for the table in the README. */
  readonly features: string;
  /** Prefix of the tensors of the model without its head, such as `model.`; a checkpoint saved without the head lacks it. */
  readonly prefix: string;
  /** Name of the embedding, with the prefix, that a tied head is compared with. */
  readonly embedding: string;
  readonly configure: Configure<ConfiguredModel>;
  /** Left out: the family has no classification head here. */
  readonly classifier?: ClassifierKind;
  /** null: llama.cpp has no such architecture, or files of it load as another one. */
  readonly gguf: GgufTable | null;
}

/** Makes the family of a Decoder from its own parts. */
export function decoderFamily({
  configure,
  features,
  gguf,
  ...family
}: DecoderFamily & {
  configure: Configure<DecoderConfig>;
  features: string;
  gguf: GgufTable | null;
}): ModelFamily {
  return {
    modelType: family.modelType,
    features,
    prefix: 'model.',
    embedding: 'model.embed_tokens.weight',
    classifier: decoderClassifier(family, configure),
    gguf,
    configure: (json, options) => {
      const config = configure(json, options);
      return {
        tied: config.tied,
        causalLM: ({ weights, origin, tied }) =>
          new DecoderLM(family, { ...config, tied }, weights, origin),
      };
    },
  };
}
