/** Top-k: only the k most likely ids can be drawn (Fan et al. 2018). */
import { whole } from '../../options/kinds.ts';
import { Selection } from '../selection.ts';
import type { ProcessorDefinition } from './processor.ts';

const options = {
  /** Number of the most likely ids that can be drawn; those as likely as the last of them stay, too. 0: all. Default 50. */
  topK: whole({
    least: 0,
    default: 50,
    help: 'most likely ids that can be drawn; 0: all',
  }),
};

export const topK: ProcessorDefinition<typeof options> = {
  options,
  sampling: true,
  create: ({ topK: k }) => {
    if (k === 0) return null;
    const selection = new Selection();
    return (scores) => {
      if (k >= scores.length) return;
      const { value } = selection.largest(scores, k);
      for (let id = 0; id < scores.length; id++) {
        if ((scores[id] as number) < value) scores[id] = Number.NEGATIVE_INFINITY;
      }
    };
  },
};
