// `balora/losses`: BA-LoRA's losses: the fused form, the same in plain ops, and the schedules of their weights.
export {
  type Positions,
  type RowsOfBatch,
  type SelectedRows,
  selectRows,
} from '../data/select_rows.ts';
export { BaLoraLoss, type BaLoraOptions, NluLoss, type NluOptions } from './balora.ts';
export { EffectiveRank, effectiveRankOf } from './effective_rank.ts';
export {
  fusedSvdLoss,
  HeadGram,
  HeadLoss,
  type HeadLossInput,
  type HeadLossOptions,
  type LossInputs,
  type SvdTermOptions,
  type TermWeights,
} from './head_loss.ts';
export {
  LogitsLoss,
  type LogitsLossInput,
  type LogitsLossOptions,
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
export {
  type AdaptiveOptions,
  adaptiveConsistencyWeight,
  type ComputedLoss,
  type ConsistencySchedule,
  consistencyWeightAt,
  type FusedForm,
  type Head as LossHead,
  type RegularizerSchedule,
  type RegularizerScheduleOptions,
  regularizerFactorAt,
  type StepOfRun,
  TermContext,
  type TermContextInput,
  type TermCounts,
  type TermNote,
  type TermRows,
  TermSums,
  type TermValue,
  type TermValues,
  type WeightContext,
} from './term.ts';
