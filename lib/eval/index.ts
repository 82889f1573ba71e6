// `balora/eval`: benchmarks and the scoring of language models on them, and measures of collapse, bias and calibration.
export {
  type AdapterChangeOptions,
  adapterChanges,
  type ModuleChange,
} from './adapter_changes.ts';
export { type BootstrapOptions, confidenceIntervals, type Interval } from './bootstrap.ts';
export {
  brierScore,
  type CalibrationBin,
  type CalibrationError,
  expectedCalibrationError,
} from './calibration.ts';
export { choiceCalibration, outputDiversity, predictionCollapse } from './collapse.ts';
export {
  distinctN,
  meanDistinctN,
  type SelfBleuOptions,
  selfBleu,
  selfBleuOfEach,
  type TokenEntropy,
  type TokenizedText,
  tokenEntropy,
  wordsOf,
} from './diversity.ts';
export {
  type AdapterIntruderOptions,
  type AdapterIntruders,
  adapterIntruders,
  type IntruderDimensions,
  type IntruderOptions,
  intruderDimensions,
} from './intruders.ts';
export {
  type Loglikelihood,
  type LoglikelihoodOptions,
  loglikelihoods,
  type ScoredModel,
} from './loglikelihood.ts';
export { mathEquivalent } from './math_answers.ts';
export {
  encodeRequest,
  fitRequest,
  type LoglikelihoodRequest,
  prefixToken,
  type RequestEncoder,
  rollingWindows,
} from './requests.ts';
export {
  type CodeRunner,
  type CodeRunnerOptions,
  type Outcome,
  openCodeRunner,
  type ProgramTest,
} from './run_code.ts';
export { type ProgramSample, runPrograms, samplesOf } from './run_programs.ts';
export { scoreItems, summarize } from './score.ts';
export type { ItemRecord, ScoredChoice, ScoreOptions } from './scoring.ts';
export { participationRatioOf, stableRankOf } from './spectrum.ts';
export { type ItemOf, type ReadItemsOptions, readItems } from './task_data.ts';
export { readTaskFile } from './task_yaml.ts';
export { Fields } from './tasks/fields.ts';
export { SCORING_TASKS, scoringTask } from './tasks/registry.ts';
export {
  type ChoiceItem,
  type ChoiceTask,
  type CodeItem,
  type CodeTask,
  type DataPart,
  type Extraction,
  type GenerationTask,
  type ItemMetrics,
  type ItemResult,
  isCodeTask,
  type QuestionItem,
  type RollingTask,
  type ScoringTask,
  type TaskMetrics,
  type TextItem,
} from './tasks/task.ts';
