/**
 * Evaluation of language models on the supervised rows of held-out data: loss, KL divergence from the base model, entropy and
 * effective rank.
 */
import { orReason, withAbort } from '../abort.ts';
import type { TunedModel } from '../adapters/tuned_model.ts';
import type { Batch } from '../data/collate.ts';
import { selectRows } from '../data/select_rows.ts';
import type { Seq2SeqExamples } from '../data/seq2seq_example.ts';
import { ArgumentError, NativeError } from '../errors.ts';
import { EffectiveRank } from '../losses/effective_rank.ts';
import { HeadGram } from '../losses/head_loss.ts';
import type { CausalLM, Seq2SeqLM } from '../models/index.ts';
import { hiddenInParts } from '../models/parts.ts';
import { kHeadTermCount } from '../ops/head_terms.ts';
import { headRows } from '../ops/losses.ts';
import { withMethods } from '../options/call.ts';
import { computeOwned, noGrad, type Tensor, tensor } from '../tensor.ts';
import {
  checkEvaluation,
  type EvaluateOptions,
  type EvaluationResult,
  type ExampleResult,
} from './types.ts';

/** The part of a tuned model that an evaluation uses; a model without a teacher can provide it as well. */
export type EvaluatedModel<M extends CausalLM | Seq2SeqLM = CausalLM> = Pick<
  TunedModel<M>,
  'model' | 'hasTeacher' | 'withTeacher'
>;

/** Micro-batches of a language model, or of an encoder-decoder. */
export type EvaluatedBatch<M extends CausalLM | Seq2SeqLM> = M extends Seq2SeqLM
  ? Seq2SeqExamples
  : Batch;

type AnyModel = CausalLM | Seq2SeqLM;
type AnyBatch = Batch | Seq2SeqExamples;

export type { EvaluateOptions } from './types.ts';

const kTuned = withMethods('an AdapterModel or a FullModel', 'withTeacher');

/** Sums over the supervised rows. */
interface Totals {
  loss: number;
  kl: number;
  entropy: number;
  tokens: number;
  supervised: number;
  examples: ExampleResult[];
}

/** Refuses results of which nothing can be said, by their names. @throws NativeError (`ERR_NOT_FINITE`) */
export function requireFinite(results: Readonly<Record<string, number>>): void {
  const bad = Object.entries(results).find(([, value]) => !Number.isFinite(value));
  if (bad === undefined) return;
  throw new NativeError(
    `evaluate: the ${bad[0]} is ${bad[1]}: the model's weights or its adapter's hold NaN or infinity, or its activations overflow`,
    {
      code: 'ERR_NOT_FINITE',
      advice:
        'evaluate an earlier checkpoint, load the model in dtype f32, or train with a lower learning rate',
    },
  );
}

/**
 * Evaluates a model on batches in which each example is a segment of its own.
 * @throws ArgumentError for an option of another type, and when no row is supervised; NativeError (`ERR_NOT_FINITE`) for a loss that is not
 *   finite
 */
export async function evaluate<M extends CausalLM | Seq2SeqLM>(
  tuned: EvaluatedModel<M>,
  batches: AsyncIterable<EvaluatedBatch<M>> | Iterable<EvaluatedBatch<M>>,
  options: EvaluateOptions = {},
): Promise<EvaluationResult> {
  checkEvaluation({ model: tuned, kind: kTuned, batches }, options);
  const begun = performance.now();
  const kl = options.kl ?? tuned.hasTeacher;
  const totals: Totals = { loss: 0, kl: 0, entropy: 0, tokens: 0, supervised: 0, examples: [] };
  const rank = new EffectiveRank();
  const headGram = new HeadGram(tuned.model.head.weight);
  try {
    for await (const batch of batches) {
      options.signal?.throwIfAborted();
      const supervised = selectRows(predictingRows(batch)).rows;
      const measure = async (): Promise<Float64Array> => {
        const { rows, hidden } = await measureBatch(tuned, batch, supervised, { ...options, kl });
        rank.add(hidden);
        hidden.dispose();
        try {
          return (await rows.data()) as Float64Array;
        } finally {
          rows.dispose();
        }
      };
      const isEmpty = supervised.length === 0;
      const values = isEmpty ? new Float64Array(0) : await orReason(options.signal, measure);
      addExamples(totals, batch, { supervised, values });
      options.onProgress?.(totals.examples.length);
    }
    if (totals.supervised === 0) {
      throw new ArgumentError(
        'evaluate: the data has no supervised token; raise maxLength above the length of the prompts',
      );
    }
    const loss = totals.loss / totals.supervised;
    requireFinite({ loss, 'KL divergence': kl ? totals.kl : 0, entropy: totals.entropy });
    return {
      loss,
      perplexity: Math.exp(loss),
      tokens: totals.tokens,
      supervisedTokens: totals.supervised,
      kl: kl ? totals.kl / totals.supervised : null,
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

/** Cross-entropy, KL and entropy of the supervised rows, (M,3) in f64, and their hidden states (M,C). */
async function measureBatch(
  tuned: EvaluatedModel<AnyModel>,
  batch: AnyBatch,
  supervised: Int32Array,
  { kl, signal, chunkBytes = 0 }: EvaluateOptions,
): Promise<{ rows: Tensor; hidden: Tensor }> {
  /** The hidden states of the supervised rows, of the model that `run` chooses. */
  const rowsOf = async (run: (body: (model: AnyModel) => Tensor) => Tensor): Promise<Tensor> => {
    const forward = (own: AnyBatch, rows: Int32Array): Tensor =>
      run((model) => model.forward(own as never, { rows }));
    if ('decoder' in batch) {
      return computeOwned(() => withAbort(signal, () => forward(batch, supervised)));
    }
    return hiddenInParts(batch, {
      rows: supervised,
      sharesPrefixes: tuned.model.sharePrefixes,
      signal,
      forward: (part, rows) => forward(part as Batch, rows),
    });
  };
  const teacher = kl ? await rowsOf((body) => tuned.withTeacher(body)) : null;
  try {
    const hidden = await rowsOf((body) => body(tuned.model));
    try {
      const rows = computeOwned(() =>
        withAbort(signal, () => {
          const { weight, softcap } = tuned.model.head;
          const ids = predictingRows(batch).targets;
          const wanted = Int32Array.from(supervised, (row) => ids[row] as number);
          const teacherWeight =
            teacher === null ? null : tuned.withTeacher(({ head }) => head.weight);
          const targets = tensor(wanted, { device: tuned.model.device });
          return noGrad(() =>
            headRows({
              ...{ hidden, teacher, targets, softcap, chunkBytes },
              ...{ head: weight, teacherHead: teacherWeight },
            }),
          );
        }),
      );
      return { rows, hidden };
    } catch (error) {
      hidden.dispose();
      throw error;
    }
  } finally {
    teacher?.dispose();
  }
}

/** The rows that predict ids; for an encoder-decoder, the rows of its decoder. */
function predictingRows(batch: AnyBatch): Pick<Batch, 'targets' | 'cuSeqlens' | 'lengths'> {
  return 'decoder' in batch ? batch.decoder : batch;
}

/** Adds the rows of a batch to the totals, and a result for each of its examples. */
function addExamples(
  totals: Totals,
  batch: AnyBatch,
  { supervised, values }: { supervised: Int32Array; values: Float64Array },
): void {
  let next = 0;
  const { cuSeqlens, lengths } = predictingRows(batch);
  for (let b = 0; b + 1 < cuSeqlens.length; b++) {
    const start = cuSeqlens[b] as number;
    const rows = lengths?.[b] ?? (cuSeqlens[b + 1] as number) - start;
    const end = start + rows;
    // An encoder-decoder reads the tokens of a source, too.
    const [from, to] = 'decoder' in batch ? batch.cuSeqlens.subarray(b, b + 2) : [0, 0];
    const tokens = rows + (to as number) - (from as number);
    const begin = next;
    let loss = 0;
    for (; next < supervised.length && (supervised[next] as number) < end; next++) {
      const [ce, kl, entropy] = values.subarray(
        kHeadTermCount * next,
        kHeadTermCount * (next + 1),
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
