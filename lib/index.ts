// The public names of `balora`: re-exports only. Further names for research are in the subpaths (`balora/ops`, `balora/nn`,
// `balora/losses`, `balora/optim`, `balora/data`, `balora/eval`, `balora/io`), each the index of the folder of that name.
// test/package/exports.test.ts counts them and requires a doc comment and a page of each.

// Adapters, full fine-tuning, merging.
export {
  type AdaptedLinear,
  type AdapterConfigInput,
  AdapterModel,
  type CreateOptions,
  type LoadOptions,
} from './adapters/adapter_model.ts';
export type { Calibration, CalibrationFacts } from './adapters/calibration.ts';
export type { LoraConfig, LoraConfigInput } from './adapters/config.ts';
export type { ConvertedModule, ConvertOptions } from './adapters/convert.ts';
export { FullModel } from './adapters/full_model.ts';
export type { LowRankPair } from './adapters/low_rank.ts';
export { type MergeError, saveMerged } from './adapters/merge.ts';
export type { MethodOption, MethodPreset } from './adapters/methods/method.ts';
export {
  type InitLoraWeights,
  type ListedMethod,
  METHODS,
  type MethodName,
} from './adapters/methods/registry.ts';
export type { SavedModules } from './adapters/saved_modules.ts';
export type { InitialPair, StartFunction } from './adapters/starts.ts';
export type { ExportForm, NamedTensor, TrainingPass, TunedModel } from './adapters/tuned_model.ts';
// Tensors and the tape; the ops are in `balora/ops`.
export { backward, type CustomOp, checkpoint, customOp, recomputing } from './autograd.ts';
// Data sources and batches.
export type { BatchSource } from './data/batch_source.ts';
export { Batches, type BatchOptions, type DataStatistics } from './data/batches.ts';
export type { Batch } from './data/collate.ts';
export type { DataWarning } from './data/dataset.ts';
export type { MetricName } from './data/glue.ts';
export {
  type LabelledBatch,
  LabelledBatches,
  type LabelledOptions,
  type LabelledStatistics,
  type LabelledWarning,
} from './data/labelled_batches.ts';
export type { LabelScheme } from './data/labels.ts';
export { type OpenRowsOptions, openRows } from './data/open_rows.ts';
export { arrayRows, type Row, type RowSource } from './data/rows.ts';
export {
  Seq2SeqBatches,
  type Seq2SeqBatchOptions,
  type Seq2SeqStatistics,
} from './data/seq2seq_batches.ts';
export type { Seq2SeqExamples } from './data/seq2seq_example.ts';
// Devices, and the engines' settings and statistics.
export {
  type DeviceInfo,
  deviceInfo,
  getDefaultDevice,
  setDefaultDevice,
  withDevice,
} from './device.ts';
// Classes and codes of errors.
export {
  ArgumentError,
  BaloraError,
  type ErrorCode,
  FormatError,
  NativeError,
  UnsupportedError,
} from './errors.ts';
// Evaluation and metrics.
export { gsm8kAnswer, gsm8kCorrect, gsm8kGold, mathAnswer, mathCorrect } from './eval/answers.ts';
export { evaluateClassifier } from './eval/classify.ts';
export { type EvaluatedModel, evaluate } from './eval/evaluate.ts';
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
export type {
  ClassifierEvaluation,
  EvaluateOptions,
  Evaluation,
  EvaluationResult,
  ExampleResult,
} from './eval/types.ts';
export { type Chat, type ChatAnswer, type ChatOptions, openChat } from './generate/chat.ts';
export { type GenerateOptions, type Generation, generate } from './generate/generate.ts';
export { ContextLengthError } from './generate/prompts.ts';
export type { TokenLogprob } from './generate/scores.ts';
export type { FinishReason, GeneratedText, GeneratedToken } from './generate/sequence.ts';
export { type GradcheckOptions, gradcheck } from './gradcheck.ts';
export { type CapturedGraph, captureGraph } from './graph.ts';
export { kIgnoredTarget } from './ignored_target.ts';
export { type ResolveOptions, resolveModel } from './io/hub.ts';
export type { ProblemType } from './losses/problem_type.ts';
// The trainer and its options.
export { defineTerm, type Term, type TermContext, type TermInput } from './losses/term.ts';
// Models and tokenizers.
export {
  AutoModelForCausalLM,
  type FromConfigOptions,
  type FromPretrainedOptions,
} from './models/auto.ts';
export {
  AutoModelForSequenceClassification,
  type ClassifierOptions,
} from './models/auto_classifier.ts';
export { AutoModelForSeq2SeqLM } from './models/auto_seq2seq.ts';
export type { ModelBatch } from './models/batch.ts';
export { CausalLM, type Head } from './models/causal_lm.ts';
export { demoCheckpoint } from './models/demo_checkpoint.ts';
export type { LayerKeep } from './models/layers.ts';
export { type ForwardOptions, Model } from './models/model.ts';
export { type SavedDType, type SaveModelOptions, saveModel } from './models/save.ts';
export { type Seq2SeqBatch, Seq2SeqLM } from './models/seq2seq_lm.ts';
export {
  type LabelOptions,
  type Labels,
  SequenceClassifier,
} from './models/sequence_classifier.ts';
export type { SchedulerOptions } from './optim/schedulers.ts';
export {
  getNumThreads,
  type MemoryStats,
  memoryStats,
  type OfDevice,
  type OpTime,
  opTimes,
  resetOpTimes,
  resetPeakMemory,
  setAllowTf32,
  setAnomalyMode,
  setDebugMode,
  setDeterministic,
  setMemoryLimit,
  setNumThreads,
  setProfiling,
  synchronize,
  synchronizeSync,
  trimMemory,
  withMemoryTag,
  withPhase,
} from './runtime.ts';
export type { TaskName } from './tasks/list.ts';
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
export type { DecodeStream } from './text/decode_stream.ts';
export {
  type DecodeOptions,
  type EncodeOptions,
  type PairOptions,
  Tokenizer,
} from './text/tokenizer.ts';
export { type CalibrateOptions, calibrate } from './train/calibrate.ts';
export {
  copyHead,
  type HeadWarmUp,
  type HeadWarmUpOptions,
  warmUpHead,
} from './train/head_warmup.ts';
export type { BatchPlan, MemoryBudget } from './train/memory_plan.ts';
export { type AdapterMethod, type ResolvedMethod, resolveMethod } from './train/methods.ts';
export type { RegularizerOptions, ResolvedRegularizers } from './train/regularizers.ts';
export type { ResolvedRun } from './train/resolve_run.ts';
export {
  type ClassifierTrainerOptions,
  type Seq2SeqTrainerOptions,
  Trainer,
  type TrainerOptions,
} from './train/trainer.ts';
export type {
  AfterBackward,
  BestOptions,
  BestStep,
  LossContext,
  LossFunction,
  LossResult,
  OptimizationOptions,
  OptimizerName,
  OutputOptions,
  ResourceOptions,
  RunPlan,
  Sample,
  SamplePrompts,
  StepRecord,
  StopReason,
  TrainCallback,
  TrainEvent,
  TrainResult,
  Warning,
} from './train/types.ts';
