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
  HeadLoss,
  type HeadLossOptions,
  type HeadMicroBatch,
  type LossInputs,
  type PreparedLoss,
  type PreparedMicroBatch,
  type TermWeights,
} from './head_loss.ts';
export {
  kNluVariants,
  LogitsLoss,
  type LogitsLossOptions,
  type LogitsMicroBatch,
  NluLoss,
  type NluOptions,
  nluTaskLoss,
} from './logits_loss.ts';
export {
  binaryCrossEntropy,
  clampSvdTopK,
  type NluConsistencyOptions,
  type NluVariant,
  nluConsistencyLoss,
  nluDiversityLoss,
  nluSvdLoss,
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
export { kProblemTypes, type ProblemType } from './problem_type.ts';
export {
  defineTerm,
  type FusedForm,
  type Term,
  TermContext,
  type TermContextInput,
  type TermInput,
  type TermNote,
  type TermRows,
  type WeightContext,
} from './term.ts';
export {
  type MicroBatchLoss,
  type TermCounts,
  TermSums,
  type TermValue,
  type TermValues,
} from './term_sums.ts';
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
