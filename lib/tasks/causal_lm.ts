/** The causal language model task: each row predicts the next token id. */
import type { Batch } from '../data/collate.ts';
import { CausalLM } from '../models/index.ts';
import { headObstacle } from './head_obstacle.ts';
import { type LanguageModelKind, languageModelTask, realRows } from './language_model.ts';
import { takeSequences } from './teacher_part.ts';

const kind: LanguageModelKind<Batch> = {
  rowsOf: (batch) => batch,
  tokensOf: realRows,
  sequencesOf: ({ inputIds, positions, cuSeqlens, lengths }) =>
    Array.from({ length: cuSeqlens.length - 1 }, (_, b) => {
      const [begin, end] = [cuSeqlens[b] as number, cuSeqlens[b + 1] as number];
      const real = lengths ? begin + (lengths[b] as number) : end;
      const ids = inputIds.subarray(begin, real);
      return { ids, positions: positions.subarray(begin, real), begin, end };
    }),
  take: takeSequences,
};

/** The task for `--task causal-lm`. */
export const causalLm = languageModelTask<CausalLM, Batch>('causal-lm', kind, {
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
