/** BA-LoRA's losses with their three terms (arXiv 2408.04556), for callers who compute micro-batches themselves. */
import { ArgumentError } from '../errors.ts';
import { type CallTable, checkCall, kCall, oneOf, wholeNumber } from '../options/call.ts';
import type { DefaultContext } from '../options/option.ts';
import { HEAD_LOSS_TABLE, HeadLoss, type HeadLossOptions } from './head_loss.ts';
import { LOGITS_LOSS_TABLE, LogitsLoss, type LogitsLossOptions } from './logits_loss.ts';
import type { NluVariant } from './nlu_terms.ts';
import { checkTemperature } from './plain.ts';
import { bind, type Head, type Term, type TermDefinition } from './term.ts';
import { kClassifierTerms, kLanguageModelTerms } from './terms/list.ts';

/** Regularizers that are on or off; a term that is off is neither computed nor reported. */
interface TermSwitches {
  readonly consistency?: boolean;
  readonly diversity?: boolean;
  readonly svd?: boolean;
}

/** Options of {@link BaLoraLoss}. */
export interface BaLoraOptions extends HeadLossOptions {
  /** Regularizers that are on or off; a term that is off is neither computed nor reported. Default: all on. */
  readonly terms?: TermSwitches;
  /** T of the consistency term. Default 2. */
  readonly temperature?: number;
  /** K of the entropy, 0: whole vocabulary. Default 20. */
  readonly entropyTopK?: number;
  /** k of the singular values. Default 10. */
  readonly svdTopK?: number;
  readonly svdNorm?: 'frobenius' | 'nuclear';
}

const kBaLoraTable: CallTable<BaLoraOptions> = {
  ...HEAD_LOSS_TABLE,
  terms: kCall.object,
  ...{ temperature: kCall.any, entropyTopK: kCall.any, svdTopK: kCall.any, svdNorm: kCall.any },
};

/** BA-LoRA's loss (arXiv 2408.04556), task + l1 CR + l2 DR + l3 SVDR; each call is given the weights. */
export class BaLoraLoss extends HeadLoss {
  constructor(head: Head, options: BaLoraOptions = {}) {
    checkCall('BaLoraLoss', options, kBaLoraTable);
    const { terms, positions, chunkBytes, ...given } = options;
    if (given.temperature !== undefined) checkTemperature('BaLoraLoss', given.temperature);
    if (!((given.entropyTopK ?? 0) >= 0)) {
      throw new ArgumentError(`entropyTopK must be >= 0, got ${given.entropyTopK}`);
    }
    super(head, termsOf(kLanguageModelTerms, terms, given), { positions, chunkBytes });
  }
}

/** Options of {@link NluLoss}. */
export interface NluOptions extends LogitsLossOptions {
  /** Form of the consistency term. Default 'iclr'. */
  readonly variant?: NluVariant;
  /** T of the consistency term. Default 2. */
  readonly temperature?: number;
  /** k of the singular values, clamped to min(N, D) - 1. Default 5. */
  readonly svdTopK?: number;
  /** Regularizers that are on or off; a term that is off is neither computed nor reported. Default: all on. */
  readonly terms?: TermSwitches;
}

const kNluTable: CallTable<NluOptions> = {
  ...LOGITS_LOSS_TABLE,
  variant: oneOf(['iclr', '2024'] satisfies NluVariant[]),
  temperature: kCall.any,
  svdTopK: wholeNumber({ least: 1 }),
  terms: kCall.object,
};

/** BA-LoRA's loss for classification and regression heads; each call is given the weights. */
export class NluLoss extends LogitsLoss {
  constructor(options: NluOptions = {}) {
    checkCall('NluLoss', options, kNluTable);
    const { terms, problemType, onWarning, ...given } = options;
    if (given.temperature !== undefined) checkTemperature('NluLoss', given.temperature);
    const task = 'sequence-classification';
    super(termsOf(kClassifierTerms, terms, given, { task }), { problemType, onWarning });
  }
}

function termsOf(
  definitions: readonly TermDefinition[],
  on: TermSwitches = {},
  given: object = {},
  context?: DefaultContext,
): Term[] {
  return definitions
    .filter(({ key }) => on[key as keyof TermSwitches] ?? true)
    .map((definition) => bind(definition, { ...given }, context));
}
