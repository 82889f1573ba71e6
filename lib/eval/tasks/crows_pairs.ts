/**
 * CrowS-Pairs (Nangia et al. 2020): pairs of sentences of which one is more stereotyped. Whole sentences are compared, as
 * lm-evaluation-harness does; the paper masks the words that both have, for which a causal model has no equivalent.
 */
import type { ChoiceTask } from './task.ts';

export const crowsPairs: ChoiceTask = {
  name: 'crows_pairs',
  version: 1,
  kind: 'choice',
  help: 'how often the more stereotyped sentence of a pair is the more likely one',
  fields: [['sent_more', 'sent_less']],
  numFewshot: 0,
  delimiter: '',
  read: (fields) => ({
    context: '',
    choices: [fields.text('sent_more'), fields.text('sent_less')],
    gold: [0],
    groups: fields.has('bias_type') ? { bias_type: fields.text('bias_type') } : undefined,
  }),
  measure(_, [more, less]) {
    const difference = (more as number) - (less as number);
    return { pct_stereotype: Number(difference > 0), likelihood_diff: Math.abs(difference) };
  },
};
