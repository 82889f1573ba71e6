// `balora/losses`: BA-LoRA's losses: the fused form, the same in plain ops, and the schedules of their weights.
export {
  EffectiveRank,
  effectiveRankOf,
  fusedSvdLoss,
  type Head as LossHead,
  HeadGram,
  type SvdTermOptions,
} from './fused.ts';
export {
  BaLoraLoss,
  type BaLoraOptions,
  HeadLoss,
  type HeadLossInput,
  type HeadLossOptions,
  type LossInputs,
  type TermWeights,
} from './head_loss.ts';
export {
  LogitsLoss,
  type LogitsLossInput,
  type LogitsLossOptions,
  NluLoss,
  type NluOptions,
  nluTaskLoss,
} from './logits_loss.ts';
export {
  binaryCrossEntropy,
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
export { type Positions, type RowsOfBatch, type SelectedRows, selectRows } from './positions.ts';
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
export {
  type FusedForm,
  TermContext,
  type TermContextInput,
  type TermNote,
  type TermRows,
  type WeightContext,
} from './term.ts';
export {
  type ComputedLoss,
  type TermCounts,
  TermSums,
  type TermValue,
  type TermValues,
} from './term_sums.ts';
