/** Top-p, or nucleus sampling: only the most likely ids that together have the probability p can be drawn (Holtzman et al. 2020). */
import { number } from '../../options/kinds.ts';
import { Probabilities } from '../scores.ts';
import { Selection } from '../selection.ts';
import type { ProcessorDefinition } from './processor.ts';

const options = {
  /**
   * Probability p: the fewest most likely ids whose probabilities add up to at least p can be drawn, at least one. Of equally likely
   * ids at the bound, the lowest stay. Default 1: all.
   */
  topP: number({
    least: 0,
    most: 1,
    default: 1,
    help: 'total probability of the most likely ids that can be drawn; 1: all',
  }),
};

export const topP: ProcessorDefinition<typeof options> = {
  options,
  sampling: true,
  create: ({ topP: wanted }) => {
    if (wanted === 1) return null;
    const [selection, probabilities] = [new Selection(), new Probabilities()];
    return (scores) => {
      const weights = probabilities.of(scores);
      const { value, above, weight } = selection.largest(scores, wanted, weights);
      let equal = Math.max(1, Math.ceil((wanted - above) / weight));
      for (let id = 0; id < scores.length; id++) {
        const score = scores[id] as number;
        if (score > value || (score === value && equal-- > 0)) continue;
        scores[id] = Number.NEGATIVE_INFINITY;
      }
    };
  },
};
