/** The temperature: scores are divided by it, so that a low one favours the likely ids. */
import { number } from '../../options/kinds.ts';
import { largestOf } from '../scores.ts';
import type { ProcessorDefinition } from './processor.ts';

const options = {
  /** Temperature that the scores are divided by before a token is drawn; 0: greedy decoding. Default 1. */
  temperature: number({
    least: 0,
    default: 1,
    help: 'divides the scores before a token is drawn; 0: greedy',
    aliases: ['temp'],
  }),
};

/** Largest finite number of float32. */
const kLargest = 3.4028234663852886e38;

export const temperature: ProcessorDefinition<typeof options> = {
  options,
  sampling: true,
  create: ({ temperature: divisor }) => {
    if (divisor === 1) return null;
    return (scores) => {
      const largest = largestOf(scores);
      // The same number may be subtracted from all scores. That keeps a tiny temperature from turning the largest into infinity.
      const shift = Math.abs(largest / divisor) <= kLargest ? 0 : largest;
      for (let id = 0; id < scores.length; id++) {
        scores[id] = ((scores[id] as number) - shift) / divisor;
      }
    };
  },
};
