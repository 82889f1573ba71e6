/** Description of a model_type's classifier, for the registry. */
import type { ParseConfigOptions } from './config_keys.ts';
import type { GgufTable } from './gguf.ts';
import type { ModelOrigin } from './model.ts';
import type { Rename } from './renamed_weights.ts';
import type { HeadOrigin, SequenceClassifier } from './sequence_classifier.ts';
import type { WeightLoader } from './weights.ts';

export type MakeClassifier = (
  weights: WeightLoader,
  origin: ModelOrigin,
  head: HeadOrigin,
) => SequenceClassifier;

export interface ClassifierKind {
  readonly modelType: string;
  /** Supported features, for the table in the README. */
  readonly features: string;
  /** The weight of the head whose rows are the labels. */
  readonly headWeight: string;
  /** Modules that a checkpoint may lack as a whole; they are then initialised at random. */
  readonly mayLack: readonly string[];
  readonly rename: Rename;
  /** The GGUF names of an encoder. Left out where llama.cpp has no such architecture, and for a decoder, whose family has them. */
  readonly gguf?: GgufTable;
  /** @throws FormatError, UnsupportedError for a configuration that is wrong or not understood */
  fromJson(json: Record<string, unknown>, options: ParseConfigOptions): MakeClassifier;
}
