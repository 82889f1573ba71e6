export {
  AutoModelForCausalLM,
  checkCausalLM,
  type FromConfigOptions,
  type FromPretrainedOptions,
} from './auto.ts';
export {
  AutoModelForSequenceClassification,
  type CheckpointHead,
  type ClassifierOptions,
  checkpointHead,
} from './auto_classifier.ts';
export { AutoModelForSeq2SeqLM, checkSeq2SeqLM } from './auto_seq2seq.ts';
export type { ModelBatch } from './batch.ts';
export { CausalLM, type Head } from './causal_lm.ts';
export { type DecoderConfig, DecoderLM, type LayerAttention } from './decoder.ts';
export { demoCheckpoint } from './demo_checkpoint.ts';
export { type GgufLayout, ggufLayoutOf } from './gguf_layout.ts';
export { KvCache } from './kv_cache.ts';
export type { LayerKeep } from './layers.ts';
export {
  type ForwardOptions,
  type LayerStates,
  Model,
  type ModelOrigin,
} from './model.ts';
export { type RopeConfig, yarnAttentionFactor } from './rope.ts';
export {
  copyCompanions,
  kSavedDType,
  type SavedDType,
  type SaveModelOptions,
  saveModel,
} from './save.ts';
export { type Seq2SeqBatch, Seq2SeqLM } from './seq2seq_lm.ts';
export {
  type HeadOrigin,
  type LabelOptions,
  type Labels,
  SequenceClassifier,
} from './sequence_classifier.ts';
export { T5ForConditionalGeneration } from './t5.ts';
export type { T5Config } from './t5_config.ts';
