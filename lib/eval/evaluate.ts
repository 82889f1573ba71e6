/**
 * Held-out numbers of a tuned model, over the supervised rows: loss, KL to the model it was, entropy, effective rank.
 */
import type { TunedModel } from '../adapters/tuned_model.ts';
import type { Batch } from '../data/collate.ts';
import { ArgumentError } from '../errors.ts';
import { EffectiveRank, evaluationRows, HeadGram } from '../losses/fused.ts';
import { selectRows } from '../losses/positions.ts';
import type { CausalLM } from '../models/index.ts';
import { noGrad, scope, type Tensor, tensor } from '../tensor.ts';
import type { EvaluationResult, ExampleResult } from './types.ts';

/** What an evaluation needs of a tuned model: a plain model without a teacher will do. */
export type EvaluatedModel = Pick<TunedModel, 'model' | 'hasTeacher' | 'withTeacher'>;

/** Options of {@link evaluate}. */
export interface EvaluateOptions {
  /** Compare with the model as it was before tuning (default: where there is a teacher). */
  kl?: boolean;
  signal?: AbortSignal;
  /** After each batch: examples done. */
  onProgress?: (examples: number) => void;
}

/** Sums over supervised rows. */
interface Totals {
  loss: number;
  kl: number;
  entropy: number;
  tokens: number;
  supervised: number;
  examples: ExampleResult[];
}

/** Columns of headRows. */
const kColumns = 3;

/**
 * Evaluates on batches that keep their examples apart (segments).
 * @throws ArgumentError when no row is supervised
 */
export async function evaluate(
  tuned: EvaluatedModel,
  batches: AsyncIterable<Batch> | Iterable<Batch>,
  options: EvaluateOptions = {},
): Promise<EvaluationResult> {
  const begun = performance.now();
  const withKl = options.kl ?? tuned.hasTeacher;
  const totals: Totals = { loss: 0, kl: 0, entropy: 0, tokens: 0, supervised: 0, examples: [] };
  const rank = new EffectiveRank();
  const headGram = new HeadGram(tuned.model.head.weight);
  try {
    for await (const batch of batches) {
      options.signal?.throwIfAborted();
      const supervised = selectRows(batch).rows;
      if (supervised.length > 0) {
        const { rows, hidden } = measureBatch(tuned, batch, { supervised, withKl });
        rank.add(hidden);
        hidden.dispose();
        const values = (await rows.data()) as Float64Array;
        rows.dispose();
        addExamples(totals, batch, { supervised, values });
      } else {
        addExamples(totals, batch, { supervised, values: new Float64Array(0) });
      }
      options.onProgress?.(totals.examples.length);
    }
    if (totals.supervised === 0) {
      throw new ArgumentError('evaluate: the data has no supervised token');
    }
    const loss = totals.loss / totals.supervised;
    return {
      loss,
      perplexity: Math.exp(loss),
      tokens: totals.tokens,
      supervisedTokens: totals.supervised,
      kl: withKl ? totals.kl / totals.supervised : null,
      entropy: totals.entropy / totals.supervised,
      effectiveRank: await rank.value(headGram),
      seconds: (performance.now() - begun) / 1000,
      examples: totals.examples,
    };
  } finally {
    rank.dispose();
    headGram.dispose();
  }
}

/** Terms of the supervised rows (M,3) f64, and their hidden states (M,C). */
function measureBatch(
  tuned: EvaluatedModel,
  batch: Batch,
  { supervised, withKl }: { supervised: Int32Array; withKl: boolean },
): { rows: Tensor; hidden: Tensor } {
  return scope(() =>
    noGrad(() => {
      const { device } = tuned.model;
      const select = (model: CausalLM): Tensor => model.forward(batch, { rows: supervised });
      const { weight, softcap } = tuned.model.head;
      const teacher = withKl
        ? tuned.withTeacher((base) => ({ hidden: select(base), head: base.head }))
        : null;
      const hidden = select(tuned.model);
      const targets = Int32Array.from(supervised, (row) => batch.targets[row] as number);
      const head = { weight, softcap, teacherWeight: teacher?.head.weight ?? null };
      const wanted = tensor(targets, { device });
      return { rows: evaluationRows(hidden, teacher?.hidden ?? null, wanted, head), hidden };
    }),
  );
}

/** Adds a batch's rows to the totals, example by example. */
function addExamples(
  totals: Totals,
  batch: Batch,
  { supervised, values }: { supervised: Int32Array; values: Float64Array },
): void {
  let next = 0;
  for (let b = 0; b + 1 < batch.cuSeqlens.length; b++) {
    const start = batch.cuSeqlens[b] as number;
    const tokens = batch.lengths?.[b] ?? (batch.cuSeqlens[b + 1] as number) - start;
    const end = start + tokens;
    const begin = next;
    let loss = 0;
    for (; next < supervised.length && (supervised[next] as number) < end; next++) {
      const [ce, kl, entropy] = values.subarray(
        kColumns * next,
        kColumns * (next + 1),
      ) as unknown as [number, number, number];
      loss += ce;
      totals.kl += kl;
      totals.entropy += entropy;
    }
    const count = next - begin;
    totals.loss += loss;
    totals.tokens += tokens;
    totals.supervised += count;
    totals.examples.push({
      index: batch.indices?.[b] ?? totals.examples.length,
      tokens,
      supervisedTokens: count,
      loss: count === 0 ? null : loss / count,
    });
  }
}
