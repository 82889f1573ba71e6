/** The least number of new tokens: until then, no id that ends the sequence can be chosen. */
import { whole } from '../../options/kinds.ts';
import type { ProcessorDefinition } from './processor.ts';

const options = {
  /** Number of new tokens before which the sequence cannot be ended by an end token. Default 0. */
  minNewTokens: whole({
    least: 0,
    default: 0,
    help: 'new tokens before which no end token can come',
    aliases: ['min-tokens', 'min-length'],
  }),
};

export const minNewTokens: ProcessorDefinition<typeof options> = {
  options,
  sampling: false,
  create: ({ minNewTokens: least }) => {
    if (least === 0) return null;
    return (scores, { newTokens, eosTokenIds }) => {
      if (newTokens >= least) return;
      for (const id of eosTokenIds) {
        if (id < scores.length) scores[id] = Number.NEGATIVE_INFINITY;
      }
    };
  },
};
