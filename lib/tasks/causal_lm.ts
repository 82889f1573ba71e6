/** The causal language model task: each row predicts the next token id. */
import type { Batch } from '../data/collate.ts';
import { CausalLM } from '../models/index.ts';
import { headObstacle, languageModelTask, SEGMENT_KIND } from './language_model.ts';

/** The task for `--task causal-lm`. */
export const causalLm = languageModelTask<CausalLM, Batch>('causal-lm', SEGMENT_KIND, {
  supports: (model) => model instanceof CausalLM,
  graphObstacle: null,
  cacheObstacle: ({ tuned, data }) => {
    const { model } = tuned;
    const longest = data.statistics?.longest ?? Number.POSITIVE_INFINITY;
    const head = headObstacle(tuned);
    if (head !== null || longest <= model.steadyLength) return head;
    return (
      `beyond ${model.steadyLength} tokens the dynamic rope of this ${model.modelType} model depends on the longest sequence ` +
      `of the batch, and the longest one of the data ${longest < Infinity ? `has ${longest}` : 'is not known'}`
    );
  },
});
