// The public surface: re-exports only.
export {
  AdapterModel,
  type CreateOptions,
  type LoadOptions,
  LoraModule,
} from './adapters/adapter_model.ts';
export {
  ALL_LINEAR,
  formatAdapterConfig,
  type LoraConfig,
  type LoraConfigInput,
  loraConfig,
  loraScale,
  parseAdapterConfig,
} from './adapters/config.ts';
export { FullModel } from './adapters/full_model.ts';
export type { LowRankPair } from './adapters/low_rank.ts';
export { type MergeError, saveMerged } from './adapters/merge.ts';
export { type InitLoraWeights, METHODS, type MethodSwitches } from './adapters/methods/registry.ts';
export type {
  Method,
  MethodOption,
  MethodPreset,
  Scaling,
  Start,
  StartModule,
  Variant,
  VariantModule,
  VariantParameter,
} from './adapters/methods/method.ts';
export type { SavedModules } from './adapters/saved_modules.ts';
export type { InitialPair, StartFunction } from './adapters/starts.ts';
export type { Target, TargetCandidate } from './adapters/targets.ts';
export type { TrainedParameter } from './adapters/trained_parameter.ts';
export type { ExportForm, NamedTensor, TrainingPass, TunedModel } from './adapters/tuned_model.ts';
export * from './autograd.ts';
export { Batches, type BatchOptions, type DataStatistics } from './data/batches.ts';
export { type Batch, type CollateOptions, collate, type Segments } from './data/collate.ts';
export type { DatasetOptions, DataWarning } from './data/dataset.ts';
export { DelimitedFile, type DelimitedOptions } from './data/delimited.ts';
export {
  type Example,
  encodeConversation,
  encodePromptResponse,
  supervisedCount,
  truncate,
} from './data/example.ts';
export type { FormatOptions } from './data/example_format.ts';
export { GLUE_TASKS, type GlueTask, glueTask, type MetricName } from './data/glue.ts';
export { JsonlFile, type JsonlOptions } from './data/jsonl.ts';
export {
  type LabelledBatch,
  LabelledBatches,
  type LabelledOptions,
  type LabelledStatistics,
  type LabelledWarning,
} from './data/labelled_batches.ts';
export type { LabelScheme } from './data/labels.ts';
export { type OpenRowsOptions, openRows } from './data/open_rows.ts';
export { ParquetFile } from './data/parquet.ts';
export { kNamedTemplates, kRecipeTemplate, PromptTemplate } from './data/prompt_template.ts';
export { arrayRows, type Row, type RowSource } from './data/rows.ts';
export {
  Seq2SeqBatches,
  type Seq2SeqBatchOptions,
  type Seq2SeqStatistics,
} from './data/seq2seq_batches.ts';
export {
  collateSeq2Seq,
  encodeSeq2Seq,
  type Seq2SeqExample,
  type Seq2SeqExamples,
  type Seq2SeqLengths,
} from './data/seq2seq_example.ts';
export {
  type DeviceInfo,
  deviceInfo,
  getDefaultDevice,
  setDefaultDevice,
  withDevice,
} from './device.ts';
export * from './errors.ts';
export {
  gsm8kAnswer,
  gsm8kCorrect,
  gsm8kGold,
  mathAnswer,
  mathCorrect,
} from './eval/answers.ts';
export { evaluateClassifier } from './eval/classify.ts';
export { type EvaluatedModel, type EvaluateOptions, evaluate } from './eval/evaluate.ts';
export {
  type ClassificationMetrics,
  type ConfusionMatrix,
  classificationMetrics,
  confusionMatrix,
  type MultiLabelMetrics,
  multiLabelMetrics,
  type RegressionMetrics,
  regressionMetrics,
} from './eval/metrics.ts';
export type { Evaluation } from './eval/types.ts';
export { CapturedGraph, captureGraph } from './graph.ts';
export { kIgnoredTarget } from './ignored_target.ts';
export * from './io/index.ts';
export * from './losses/index.ts';
export * from './models/index.ts';
export * from './nn/index.ts';
export * from './ops/index.ts';
export * from './optim/index.ts';
export * from './runtime.ts';
export {
  type DType,
  enableGrad,
  keep,
  type NestedNumbers,
  noGrad,
  scope,
  Tensor,
  type TensorData,
  type TensorOptions,
  tensor,
} from './tensor.ts';
export {
  type ChatMessage,
  ChatTemplate,
  type ChatTemplateSource,
  type RenderOptions,
} from './text/chat_template.ts';
export type { Encoding } from './text/frame.ts';
export type { GgufMetadata } from './text/gguf_vocabulary.ts';
export {
  type DecodeOptions,
  type EncodeOptions,
  type PairOptions,
  Tokenizer,
} from './text/tokenizer.ts';
export type { TaskName } from './tasks/list.ts';
export {
  copyHead,
  type HeadWarmUp,
  type HeadWarmUpOptions,
  warmUpHead,
} from './train/head_warmup.ts';
export type { BatchPlan, MemoryBudget } from './train/memory_plan.ts';
export {
  type AdapterMethod,
  type ResolvedMethod,
  resolveMethod,
} from './train/methods.ts';
export type { ResolvedOptions } from './train/options.ts';
export type { RegularizerOptions, ResolvedRegularizers } from './train/regularizers.ts';
export type { AfterBackward } from './train/step.ts';
export {
  type ClassifierTrainerOptions,
  type Seq2SeqTrainerOptions,
  Trainer,
  type TrainerOptions,
} from './train/trainer.ts';
export * from './train/types.ts';
