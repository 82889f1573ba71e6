/** Arithmetic on the scores of one row: the best id, probabilities, log-probabilities. Sums are computed in float64. */
import { Selection } from './selection.ts';

/** The largest score. */
export function largestOf(scores: Float32Array): number {
  let largest = Number.NEGATIVE_INFINITY;
  for (let id = 0; id < scores.length; id++) {
    const score = scores[id] as number;
    if (score > largest) largest = score;
  }
  return largest;
}

/** The first id with the largest score. */
export function argmax(scores: Float32Array): number {
  let [best, largest] = [0, scores[0] as number];
  for (let id = 1; id < scores.length; id++) {
    const score = scores[id] as number;
    if (score > largest) [best, largest] = [id, score];
  }
  return best;
}

/** The first id whose score is NaN or positive infinity; -1 where there is none. */
export function firstInvalid(scores: Float32Array): number {
  for (let id = 0; id < scores.length; id++) {
    if (!((scores[id] as number) < Number.POSITIVE_INFINITY)) return id;
  }
  return -1;
}

/** Writes exp(score - largest score) of each score (V) into `to`, and returns their sum, in float64. */
export function exponentials(scores: Float32Array, to: Float32Array | Float64Array): number {
  const largest = largestOf(scores);
  let sum = 0;
  for (let id = 0; id < scores.length; id++) {
    const score = scores[id] as number;
    const power = score === Number.NEGATIVE_INFINITY ? 0 : Math.exp(score - largest);
    to[id] = power;
    sum += power;
  }
  return sum;
}

/** Probabilities of rows of scores; it keeps the memory of its result from call to call. */
export class Probabilities {
  #row = new Float32Array(0);

  /** The softmax of scores (V), rounded to float32 once; valid until the next call. */
  of(scores: Float32Array): Float32Array {
    if (this.#row.length !== scores.length) this.#row = new Float32Array(scores.length);
    const row = this.#row;
    const sum = exponentials(scores, row);
    for (let id = 0; id < scores.length; id++) row[id] = (row[id] as number) / sum;
    return row;
  }
}

/** An id and the natural logarithm of its probability. */
export interface TokenLogprob {
  readonly token: number;
  readonly logprob: number;
}

/** The natural logarithm of the sum of exp(score) over all ids. */
export function logSumExp(scores: Float32Array): number {
  const largest = largestOf(scores);
  let sum = 0;
  for (let id = 0; id < scores.length; id++) sum += Math.exp((scores[id] as number) - largest);
  return largest + Math.log(sum);
}

/** The `count` most likely ids of a row, the likeliest first, equal ones by their ids. */
export function topLogprobs(logits: Float32Array, count: number, sum: number): TokenLogprob[] {
  if (count === 0) return [];
  const { value } = new Selection().largest(logits, count);
  const found: TokenLogprob[] = [];
  for (let id = 0; id < logits.length; id++) {
    const logit = logits[id] as number;
    if (logit >= value) found.push({ token: id, logprob: logit - sum });
  }
  return found.sort((a, b) => b.logprob - a.logprob || a.token - b.token).slice(0, count);
}
