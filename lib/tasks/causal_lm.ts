/** Causal language models: every row predicts the id after it. */
import type { Batch } from '../data/collate.ts';
import { evaluate } from '../eval/evaluate.ts';
import type { Positions } from '../losses/positions.ts';
import { kLanguageModelTerms } from '../losses/terms/list.ts';
import { CausalLM } from '../models/index.ts';
import {
  kLanguageModelMetrics,
  type LanguageModelKind,
  LanguageModelLoss,
  languageModelOptions,
  realRows,
  selectOf,
} from './language_model.ts';
import { headObstacle } from './head_obstacle.ts';
import type { Task } from './task.ts';

const kind: LanguageModelKind<Batch> = {
  rowsOf: (batch) => batch,
  tokensOf: realRows,
  sequencesOf: ({ inputIds, cuSeqlens, lengths }) =>
    Array.from({ length: cuSeqlens.length - 1 }, (_, b) => {
      const [begin, end] = [cuSeqlens[b] as number, cuSeqlens[b + 1] as number];
      const ids = inputIds.subarray(begin, lengths ? begin + (lengths[b] as number) : end);
      return { ids, begin, end };
    }),
};

/** `--task causal-lm`. */
export const causalLm: Task<CausalLM, Batch> = {
  name: 'causal-lm',
  terms: kLanguageModelTerms,
  options: languageModelOptions,
  tunes: (model) => model instanceof CausalLM,
  select: (batch, { positions }) => selectOf(batch, kind, positions as Positions),
  loss: (tuned, settings) => new LanguageModelLoss(tuned, kind, settings),
  evaluate: (tuned, batches, options) => evaluate(tuned, batches, options),
  metrics: () => kLanguageModelMetrics,
  check: () => {},
  lossObstacle: null,
  teacherObstacle: null,
  graphObstacle: null,
  cacheObstacle: ({ tuned, data }) => {
    const { model } = tuned;
    const longest = data.statistics?.longest ?? Number.POSITIVE_INFINITY;
    const head = headObstacle(tuned);
    if (head !== null || longest <= model.steadyLength) return head;
    return (
      `beyond ${model.steadyLength} tokens the dynamic rope of this ${model.modelType} model turns a sequence by the ` +
      `longest one of its batch, and the data's longest ${longest < Infinity ? `has ${longest}` : 'is not known'}`
    );
  },
};
