export {
  AutoModelForCausalLM,
  type FromConfigOptions,
  type FromPretrainedOptions,
} from './auto.ts';
export { AutoModelForSequenceClassification, type ClassifierOptions } from './auto_classifier.ts';
export { BertForSequenceClassification } from './bert.ts';
export { CausalLM, type Head } from './causal_lm.ts';
export { type DecoderConfig, DecoderLM, type LayerAttention } from './decoder.ts';
export { demoCheckpoint } from './demo_checkpoint.ts';
export { type ResolveOptions, resolveModel } from './hub.ts';
export { Model, type ModelBatch, type ModelOrigin } from './model.ts';
export type { RopeConfig } from './rope.ts';
export { type SaveModelOptions, saveModel } from './save.ts';
export {
  type HeadOrigin,
  type LabelOptions,
  type Labels,
  SequenceClassifier,
} from './sequence_classifier.ts';
