/** The repetition penalty (Keskar et al. 2019, "CTRL"): ids that have occurred become less likely. */
import { number } from '../../options/kinds.ts';
import type { ProcessorDefinition } from './processor.ts';

const options = {
  /**
   * Penalty p of the ids that occur in the prompt or the new tokens: a score s becomes s/p, a negative one s*p. Below 1 it
   * encourages repetitions. Default 1: none.
   */
  repetitionPenalty: number({
    least: 0,
    above: true,
    default: 1,
    help: 'divides the scores of ids that have occurred; 1: off',
    aliases: ['repeat-penalty'],
  }),
};

export const repetitionPenalty: ProcessorDefinition<typeof options> = {
  options,
  sampling: false,
  create: ({ repetitionPenalty: penalty }) => {
    if (penalty === 1) return null;
    return (scores, { seen }) => {
      for (const id of seen) {
        const score = scores[id] as number;
        scores[id] = score < 0 ? score * penalty : score / penalty;
      }
    };
  },
};
