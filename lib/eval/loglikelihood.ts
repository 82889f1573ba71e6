/** Log-likelihoods of continuations under a causal language model. */
import { orReason, withAbort } from '../abort.ts';
import type { TunedModel } from '../adapters/tuned_model.ts';
import { ArgumentError, NativeError } from '../errors.ts';
import { CausalLM, type ModelBatch } from '../models/index.ts';
import { hiddenInParts } from '../models/parts.ts';
import { argmax, gather, logSumExp, sub } from '../ops/index.ts';
import { checkKeys } from '../options/call.ts';
import { noGrad, scope, type Tensor, tensor } from '../tensor.ts';
import type { LoglikelihoodRequest } from './requests.ts';

/** A causal language model, or one that is tuned, which is scored as it is: with its active adapter. */
export type ScoredModel = CausalLM | TunedModel<CausalLM>;

/** The log-likelihood of a continuation. */
export interface Loglikelihood {
  /** Sum of the natural logarithms of the probabilities of its tokens. */
  readonly loglikelihood: number;
  /** Whether each of its tokens is the most likely one. */
  readonly isGreedy: boolean;
}

/** Options of {@link loglikelihoods}. */
export interface LoglikelihoodOptions {
  /** Largest number of tokens in a forward, those of a common beginning included, unless one group has more. Default 2048. */
  readonly batchTokens?: number;
  /** Whether the tokens with which several requests of a forward begin are computed once. It changes rounding only. Default true. */
  readonly sharePrefixes?: boolean;
  readonly signal?: AbortSignal | undefined;
}

/** Bytes of logits that exist at a time. */
const kLogitBytes = 64 << 20;

/** The causal language model of a scored one. @throws ArgumentError for any other kind of model */
export function scoredModel(given: ScoredModel): CausalLM {
  const model: unknown = given instanceof CausalLM ? given : given?.model;
  if (model instanceof CausalLM) return model;
  throw new ArgumentError(
    'score: the model must be a causal language model or one that is tuned; load it with AutoModelForCausalLM',
  );
}

/**
 * Computes log-likelihoods, group by group: requests of a group, such as the answers of an item, are in the same forward.
 * @returns the log-likelihoods of each group, in order
 * @throws NativeError (`ERR_NOT_FINITE`) for one that is NaN
 */
export async function* loglikelihoods(
  scored: ScoredModel,
  groups: Iterable<readonly LoglikelihoodRequest[]>,
  options: LoglikelihoodOptions = {},
): AsyncGenerator<readonly Loglikelihood[]> {
  checkKeys('loglikelihoods', options, 'batchTokens sharePrefixes signal');
  const { batchTokens = 2048, sharePrefixes = true, signal } = options;
  const model = scoredModel(scored);
  for (const batch of batches(groups, batchTokens)) {
    signal?.throwIfAborted();
    const requests = batch.flat();
    const found: Loglikelihood[] = [];
    // One forward for all, unless the rows of some depend on the longest sequence of the forward.
    const isSteady = requests.every((request) => inputLength(request) <= model.steadyLength);
    for (const pass of isSteady ? [requests] : requests.map((request) => [request])) {
      found.push(
        ...(await orReason(signal, () => forward(model, pass, { sharePrefixes, signal }))),
      );
    }
    let next = 0;
    for (const group of batch) {
      yield found.slice(next, next + group.length);
      next += group.length;
    }
  }
}

/** Puts groups together as long as their inputs have at most so many tokens. */
function* batches(
  groups: Iterable<readonly LoglikelihoodRequest[]>,
  most: number,
): Generator<(readonly LoglikelihoodRequest[])[]> {
  let [batch, tokens] = [[] as (readonly LoglikelihoodRequest[])[], 0];
  for (const group of groups) {
    const own = group.reduce((sum, request) => sum + inputLength(request), 0);
    if (batch.length > 0 && tokens + own > most) {
      yield batch;
      [batch, tokens] = [[], 0];
    }
    batch.push(group);
    tokens += own;
  }
  if (batch.length > 0) yield batch;
}

/** The number of ids that the model reads: the last id is only predicted. */
function inputLength({ context, continuation }: LoglikelihoodRequest): number {
  return context.length + continuation.length - 1;
}

/** Values of predicted ids that have been computed on the device: (M,1) log-probabilities in f32, and (M) the most likely ids. */
interface RowValues {
  readonly logprobs: Tensor;
  readonly best: Tensor;
}

async function forward(
  model: CausalLM,
  requests: readonly LoglikelihoodRequest[],
  { sharePrefixes, signal }: { sharePrefixes: boolean; signal: AbortSignal | undefined },
): Promise<Loglikelihood[]> {
  const { batch, rows, targets } = batchOf(requests);
  const hidden = await hiddenInParts(batch, {
    ...{ rows, signal, sharesPrefixes: sharePrefixes && model.sharePrefixes },
    forward: (part, own) => model.forward(part, { rows: own, sharePrefixes }),
  });
  const pending: RowValues[] = [];
  const [logprobs, best]: [number[], number[]] = [[], []];
  const readFirst = async (): Promise<void> => {
    const [values] = pending as [RowValues];
    for (const value of (await values.logprobs.data()) as Float32Array) logprobs.push(value);
    for (const id of (await values.best.data()) as Int32Array) best.push(id);
    pending.shift();
    dispose(values);
  };
  try {
    const size = Math.max(1, Math.floor(kLogitBytes / (4 * model.vocabSize)));
    for (let from = 0; from < rows.length; from += size) {
      const wanted = { from, targets: targets.subarray(from, from + size) };
      pending.push(
        scope(() => noGrad(() => withAbort(signal, () => rowValues(model, hidden, wanted)))),
      );
      // One more is enqueued than is read, so that the engine does not wait for JavaScript.
      if (pending.length > 1) await readFirst();
    }
    while (pending.length > 0) await readFirst();
    return sums(requests, logprobs, best);
  } finally {
    pending.forEach(dispose);
    hidden.dispose();
  }
}

function dispose({ logprobs, best }: RowValues): void {
  logprobs.dispose();
  best.dispose();
}

/** The values of the rows `from` and after, of which there are as many as targets. */
function rowValues(
  model: CausalLM,
  hidden: Tensor,
  { from, targets }: { readonly from: number; readonly targets: Int32Array },
): RowValues {
  return scope(() => {
    const rows = Int32Array.from(targets, (_, i) => from + i);
    const logits = model.logits(hidden, rows).to('f32');
    const index = tensor(targets, { shape: [targets.length, 1], device: model.device });
    const sum = logSumExp(logits, { axis: -1, keepDims: true });
    return { logprobs: sub(gather(logits, index), sum), best: argmax(logits) };
  });
}

/** One segment for each request, and the rows that predict its continuation. */
function batchOf(requests: readonly LoglikelihoodRequest[]): {
  readonly batch: ModelBatch;
  readonly rows: Int32Array;
  readonly targets: Int32Array;
} {
  const cuSeqlens = new Int32Array(requests.length + 1);
  const inputIds: number[] = [];
  const positions: number[] = [];
  const rows: number[] = [];
  const targets: number[] = [];
  requests.forEach((request, b) => {
    const { context, continuation } = request;
    const start = cuSeqlens[b] as number;
    const length = inputLength(request);
    cuSeqlens[b + 1] = start + length;
    for (const id of context) inputIds.push(id);
    for (const id of continuation.slice(0, -1)) inputIds.push(id);
    for (let t = 0; t < length; t++) positions.push(t);
    continuation.forEach((id, i) => {
      rows.push(start + context.length - 1 + i);
      targets.push(id);
    });
  });
  return {
    batch: {
      inputIds: Int32Array.from(inputIds),
      positions: Int32Array.from(positions),
      cuSeqlens,
    },
    rows: Int32Array.from(rows),
    targets: Int32Array.from(targets),
  };
}

function sums(
  requests: readonly LoglikelihoodRequest[],
  logprobs: readonly number[],
  best: readonly number[],
): Loglikelihood[] {
  let next = 0;
  return requests.map(({ continuation }) => {
    let [loglikelihood, isGreedy] = [0, true];
    for (const id of continuation) {
      loglikelihood += logprobs[next] as number;
      isGreedy &&= best[next] === id;
      next++;
    }
    if (!Number.isNaN(loglikelihood)) return { loglikelihood, isGreedy };
    throw new NativeError('score: a log-likelihood is NaN', {
      code: 'ERR_NOT_FINITE',
      advice:
        'the weights or the adapter hold such values, or overflow in their dtype: load the model in f32',
    });
  });
}
