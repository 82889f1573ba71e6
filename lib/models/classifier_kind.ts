/** What a model_type says of its classifier, for the registry. */
import type { ConfigOptions } from './config_keys.ts';
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
  /** What is supported of it, for the table in the README. */
  readonly features: string;
  /** The weight of the head whose rows are the labels. */
  readonly headWeight: string;
  /** Modules that a checkpoint may lack as a whole; they are then drawn anew. */
  readonly mayLack: readonly string[];
  readonly rename: Rename;
  /** Of an encoder. Left out: llama.cpp has no such architecture, or (a decoder's) it is the family's. */
  readonly gguf?: GgufTable;
  /** @throws FormatError, UnsupportedError for a configuration that is wrong or not understood */
  fromJson(
    json: Record<string, unknown>,
    options: ConfigOptions & { path: string },
  ): MakeClassifier;
}
