// BA-LoRA's losses on logits that exist as tensors, in plain tensor ops: for research, for a user's own loss, and as the reference
// that the fused form is tested against. Every function takes any float dtype (f64 too; bf16 and f16 are widened to f32) and
// is differentiable in its first argument; no gradient flows to the teacher.
import { ArgumentError } from '../errors.ts';
import {
  add,
  crossEntropy,
  div,
  exp,
  greater,
  logSoftmax,
  matmul,
  max,
  mean,
  mul,
  neg,
  singularValues,
  slice,
  sqrt,
  square,
  sub,
  sum,
  tanh,
  topK,
  where,
} from '../ops/index.ts';
import { checkKeys } from '../options/call.ts';
import { shown } from '../shown.ts';
import type { Tensor } from '../tensor.ts';

/** Singular values up to this share of the largest carry no gradient. */
const kRankTolerance = 1e-6;

/**
 * Logits of a head: hidden W^T, soft-capped to softcap * tanh(. / softcap) where softcap > 0; 0 and null: not.
 * @param hidden (M, C)
 * @param weight (V, C)
 * @returns (M, V)
 */
export function headLogits(
  hidden: Tensor,
  weight: Tensor,
  options: { softcap?: number | null } = {},
): Tensor {
  const { softcap = null } = checkKeys('headLogits', options, 'softcap');
  const logits = matmul(hidden, weight, { transposeB: true });
  return softcap !== null && softcap > 0 ? mul(tanh(div(logits, softcap)), softcap) : logits;
}

/** The greatest temperature of a divergence. Beyond it a difference of logits divided by T says nothing that T = 10^4 does not. */
export const kGreatestTemperature = 1e4;

/** The greatest temperature of a teacher's summary, whose f32 numbers hold the divergence as a difference. */
export const kGreatestSummaryTemperature = 32;

/** Checks the temperature of a divergence. */
export function checkTemperature(op: string, temperature: number): void {
  if (temperature > 0 && temperature <= kGreatestTemperature) return;
  throw new ArgumentError(
    `${op}: temperature must be > 0 and <= ${kGreatestTemperature}, got ${shown(temperature)}`,
  );
}

/**
 * L_CR = T^2 mean_M KL(softmax(teacher/T) || softmax(student/T)), in nats. Computed in f64, in a form that does not cancel at a
 * high temperature; exactly 0 for equal logits.
 * @param student (M, V) logits
 * @param teacher (M, V) logits
 * @param options temperature: T, up to 10^4. Default 2
 */
export function consistencyLoss(
  student: Tensor,
  teacher: Tensor,
  options: { temperature?: number } = {},
): Tensor {
  const { temperature = 2 } = checkKeys('consistencyLoss', options, 'temperature');
  checkTemperature('consistencyLoss', temperature);
  const z = rowsOf('consistencyLoss', student);
  const logP = logSoftmax(mul(centred(z.to('f64')), 1 / temperature));
  const logQ = logSoftmax(mul(centred(teacher.detach().to('f64')), 1 / temperature));
  const rows = sum(divergenceParts(logQ, logP), { axis: -1 });
  return mul(mean(rows), temperature * temperature).to(z.dtype);
}

/**
 * p - q - q (ln p - ln q), whose sum over all outcomes is KL(q || p), as those of p and of q are 1. No part is below 0, so that they
 * do not cancel, as q (ln q - ln p) of different outcomes would.
 * @param logQ f64, as logP: a part is of the second order of their difference
 */
export function divergenceParts(logQ: Tensor, logP: Tensor): Tensor {
  const q = exp(logQ);
  return sub(sub(exp(logP), q), mul(q, sub(logP, logQ)));
}

/**
 * L_DR = -mean_M H(pi), pi the softmax over the K largest logits of a row (renormalised; ties: lowest index).
 * @param student (M, V) logits
 * @param options topK: K; 0 or >= V: the whole vocabulary. Default 20
 */
export function diversityLoss(student: Tensor, options: { topK?: number } = {}): Tensor {
  const { topK: k = 20 } = checkKeys('diversityLoss', options, 'topK');
  if (!(k >= 0)) throw new ArgumentError(`diversityLoss: topK must be >= 0, got ${shown(k)}`);
  const z = rowsOf('diversityLoss', student);
  const kept = k === 0 || k >= (z.shape[1] as number) ? z : topK(z, k).values;
  const logPi = logSoftmax(centred(kept));
  return mean(sum(mul(exp(logPi), logPi), { axis: -1 }));
}

/**
 * L_SVDR = -(sum of the k largest singular values of the logits) / norm. 0, with gradient 0, for zero logits; where k exceeds
 * the numerical rank, the smallest-norm subgradient.
 * @param student (M, V) logits
 * @param options k: default 10; norm: 'frobenius' (default) or 'nuclear'
 */
export function svdLoss(
  student: Tensor,
  options: { k?: number; norm?: 'frobenius' | 'nuclear' } = {},
): Tensor {
  const { k = 10, norm = 'frobenius' } = checkKeys('svdLoss', options, 'k norm');
  if (!(k >= 1)) throw new ArgumentError(`svdLoss: k must be >= 1, got ${shown(k)}`);
  const z = rowsOf('svdLoss', student);
  const all = singularValues(z);
  const threshold = mul(slice(all, 0, { stop: 1 }), kRankTolerance).detach();
  const sigma = where(greater(all, threshold), all, all.detach());
  const leading = sum(slice(sigma, 0, { stop: k }));
  // The norm of a zero matrix is replaced before it is divided by, so that no 0 * infinity reaches the gradient.
  const total = norm === 'nuclear' ? sum(sigma) : sum(square(z));
  const nonzero = greater(total, 0);
  const safe = where(nonzero, total, 1);
  const ratio = div(leading, norm === 'nuclear' ? safe : sqrt(safe));
  return neg(where(nonzero, ratio, 0));
}

/** Logits and targets of the plain losses. */
export interface PlainInputs {
  /** (M, V) logits of the rows of the regularizers. */
  logits: Tensor;
  /** (M, V) logits of the teacher. Default, and null: none, and so no consistency term. */
  teacherLogits?: Tensor | null;
  /** (M) i32: the id each row must predict, -100 where it has no task term. */
  targets: Tensor;
  /** (S, V) logits of the task's rows, where they differ from those of the regularizers; `targets` then belongs to these. */
  taskLogits?: Tensor;
}

/** Settings of the plain losses. */
export interface PlainOptions {
  /** l1, l2, l3. */
  weights: { consistency: number; diversity: number; svd: number };
  /** Default 2. */
  temperature?: number;
  /** Default 20. */
  entropyTopK?: number;
  /** Default 10. */
  svdTopK?: number;
  svdNorm?: 'frobenius' | 'nuclear';
}

/** Values of the plain losses, on the tape. */
export interface PlainTerms {
  /** task + l1 consistency + l2 diversity + l3 svd, () on the tape. */
  loss: Tensor;
  task: Tensor;
  consistency: Tensor | null;
  diversity: Tensor;
  svd: Tensor;
}

/** The whole loss and its terms, each a mean over its rows. */
export function baLoraPlainLoss(inputs: PlainInputs, options: PlainOptions): PlainTerms {
  checkKeys('baLoraPlainLoss', options, 'weights temperature entropyTopK svdTopK svdNorm');
  checkKeys('baLoraPlainLoss', inputs, 'logits teacherLogits targets taskLogits');
  const { logits, teacherLogits = null, targets, taskLogits = logits } = inputs;
  const { weights, temperature = 2, entropyTopK = 20, svdTopK = 10, svdNorm } = options;
  const task = crossEntropy(wide(taskLogits), targets);
  const consistency = teacherLogits
    ? consistencyLoss(logits, teacherLogits, { temperature })
    : null;
  const diversity = diversityLoss(logits, { topK: entropyTopK });
  const svd = svdLoss(logits, { k: svdTopK, norm: svdNorm ?? 'frobenius' });
  let loss = add(task, mul(diversity, weights.diversity));
  loss = add(loss, mul(svd, weights.svd));
  if (consistency) loss = add(loss, mul(consistency, weights.consistency));
  return { loss, task, consistency, diversity, svd };
}

/** Rows minus their largest element, which have the same softmax, but whose logarithm loses no digits to large logits. */
function centred(x: Tensor): Tensor {
  return sub(x, max(x.detach(), { axis: -1, keepDims: true }));
}

function wide(x: Tensor): Tensor {
  return x.dtype === 'bf16' || x.dtype === 'f16' ? x.to('f32') : x;
}

/** Checks logits (M, V), which must have a row, and widens half precision to f32. */
export function rowsOf(op: string, logits: Tensor): Tensor {
  if (logits.ndim !== 2 || logits.size === 0) {
    throw new ArgumentError(
      `${op}: logits must be (M,V) with rows, got (${logits.shape.join(',')})`,
    );
  }
  return wide(logits);
}
