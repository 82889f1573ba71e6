/** Min-p: only ids that are at least p times as likely as the most likely one can be drawn (Nguyen et al. 2024). */
import { number } from '../../options/kinds.ts';
import { largestOf } from '../scores.ts';
import type { ProcessorDefinition } from './processor.ts';

const options = {
  /** Least probability of an id that can be drawn, as a share of that of the most likely one. Default 0: all. */
  minP: number({
    least: 0,
    most: 1,
    default: 0,
    help: 'least probability of an id, as a share of the largest; 0: all',
  }),
};

export const minP: ProcessorDefinition<typeof options> = {
  options,
  sampling: true,
  create: ({ minP: share }) => {
    if (share === 0) return null;
    const distance = Math.log(share);
    return (scores) => {
      const bound = largestOf(scores) + distance;
      for (let id = 0; id < scores.length; id++) {
        if ((scores[id] as number) < bound) scores[id] = Number.NEGATIVE_INFINITY;
      }
    };
  },
};
