// BA-LoRA's losses: the fused form, the same in plain ops, and the schedules of their weights.
export {
  EffectiveRank,
  effectiveRankOf,
  evaluationRows,
  fusedSvdLoss,
  gramFormAllowed,
  type Head as LossHead,
  HeadGram,
  type SvdTermOptions,
} from './fused.ts';
export {
  BaLoraLoss,
  type BaLoraOptions,
  type MicroBatch as LossMicroBatch,
  type MicroBatchLoss,
  type TermValues,
  type TermWeights,
  type WindowCounts,
  WindowTerms,
} from './nlg.ts';
export {
  kProblemTypes,
  kVariants as kNluVariants,
  NluLoss,
  type NluMicroBatch,
  type NluMicroBatchLoss,
  type NluOptions,
  type NluWarning,
  NluWindowTerms,
  nluTaskLoss,
} from './nlu.ts';
export {
  binaryCrossEntropy,
  clampSvdTopK,
  type NluConsistencyOptions,
  type NluVariant,
  nluConsistencyLoss,
  nluDiversityLoss,
  nluSvdLoss,
  type ProblemType,
} from './nlu_terms.ts';
export {
  baLoraPlainLoss,
  consistencyLoss,
  diversityLoss,
  headLogits,
  type PlainInputs,
  type PlainOptions,
  type PlainTerms,
  svdLoss,
} from './plain.ts';
export {
  type Positions,
  type RowsOfBatch,
  type SelectedRows,
  selectRows,
} from './positions.ts';
export {
  type AdaptiveOptions,
  adaptiveConsistencyWeight,
  type ConsistencySchedule,
  consistencyWeightAt,
  type RegularizerSchedule,
  type RegularizerScheduleOptions,
  regularizerFactorAt,
  type StepOfRun,
} from './schedules.ts';
