/**
 * The list of logits processors, in the order in which transformers applies them. A new one is a file beside this one, and its place
 * in the list, in the list's type and in the type of the options.
 */
import { minNewTokens } from './min_new_tokens.ts';
import { minP } from './min_p.ts';
import type { LogitsProcessor, ProcessorDefinition } from './processor.ts';
import { repetitionPenalty } from './repetition_penalty.ts';
import { temperature } from './temperature.ts';
import { topK } from './top_k.ts';
import { topP } from './top_p.ts';

/** Processors that apply to greedy decoding, too. */
const kAlways = [repetitionPenalty, minNewTokens] as const;
/** Processors that shape the distribution that tokens are drawn from. */
const kSampling = [temperature, topK, topP, minP] as const;

const kProcessors: readonly ProcessorDefinition[] = [...kAlways, ...kSampling];

// Named types: in a declaration file the doc comments of spread properties would be lost.
type Own<D extends { readonly options: unknown }> = D['options'];

/** Options of the processors for greedy decoding and sampling. */
export const processorOptions: Own<typeof repetitionPenalty> & Own<typeof minNewTokens> = {
  ...repetitionPenalty.options,
  ...minNewTokens.options,
};

/** Options of the processors that apply to sampling alone. */
export const samplingOptions: Own<typeof temperature> &
  Own<typeof topK> &
  Own<typeof topP> &
  Own<typeof minP> = {
  ...temperature.options,
  ...topK.options,
  ...topP.options,
  ...minP.options,
};

/**
 * Makes the processors that options ask for, in their order; those with neutral values are left out.
 * @param options every option of the processors
 * @param doSample whether tokens are drawn; greedy decoding leaves out the processors that only shape a distribution
 */
export function makeProcessors(
  options: Readonly<Record<string, unknown>>,
  doSample: boolean,
): readonly LogitsProcessor[] {
  return kProcessors.flatMap(({ sampling, create }) => {
    if (sampling && !doSample) return [];
    return create(options as never) ?? [];
  });
}
