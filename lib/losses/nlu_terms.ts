// BA-LoRA's three regularizers for classification and regression heads (for NLU tasks in arXiv 2408.04556), on Z (N, D): D logits for
// each of the N examples of a batch. Plain tensor ops: Z is small. Every function takes any float dtype (bf16 and f16 are widened to
// f32) and is differentiable in its first argument; no gradient flows to the teacher.
import { ArgumentError } from '../errors.ts';
import {
  add,
  arange,
  div,
  equal,
  exp,
  greater,
  logSoftmax,
  matmul,
  mean,
  mul,
  neg,
  reshape,
  sigmoid,
  softplus,
  sqrt,
  square,
  sub,
  sum,
  where,
} from '../ops/index.ts';
import { checkKeys } from '../options/call.ts';
import { shown } from '../shown.ts';
import type { Tensor } from '../tensor.ts';
import { checkTemperature, consistencyLoss, divergenceParts, rowsOf, svdLoss } from './plain.ts';
import type { ProblemType } from './problem_type.ts';

/** A form of the consistency term: the divergence of the ICLR paper, or the 2024 code's distance of normalised rows. */
export type NluVariant = 'iclr' | '2024';

/** The squared norm up to which a row counts as zero in the 2024 variant: such a row is divided by the constant 1e-12. */
const kLeastSquaredNorm = 1e-24;

/** Options of the consistency term. */
export interface NluConsistencyOptions {
  /** Default 'iclr'. */
  variant?: NluVariant;
  /** T of the 'iclr' divergence. Default 2. */
  temperature?: number;
  /** Default 'single_label_classification'. */
  problemType?: ProblemType;
}

/**
 * L_CR, the distance of the outputs from the teacher's. Its forms are:
 *
 * - 'iclr': T^2 mean_N KL(softmax(P/T) || softmax(Z/T)); with independent labels the teacher's distribution is a product of
 *   Bernoullis, so the divergence is the sum of theirs: T^2 mean_N sum_D KL(sigmoid(P/T) || sigmoid(Z/T)).
 * - '2024': the mean over N*D of the squared difference of the rows of Z and P, each divided by max(its norm, 1e-12).
 * - regression, either variant: mean (Z - P)^2, since outputs are no distribution and a row of one number has no direction.
 * @param student Z (N, D)
 * @param teacher P (N, D)
 * @returns ()
 */
export function nluConsistencyLoss(
  student: Tensor,
  teacher: Tensor,
  options: NluConsistencyOptions = {},
): Tensor {
  checkKeys('nluConsistencyLoss', options, 'variant temperature problemType');
  const { variant = 'iclr', temperature = 2, problemType } = options;
  const z = rowsOf('nluConsistencyLoss', student);
  const p = rowsOf('nluConsistencyLoss', teacher.detach());
  if (z.shape.join() !== p.shape.join()) {
    throw new ArgumentError(
      `nluConsistencyLoss: teacher must be as student, (${z.shape.join(',')}), got (${p.shape.join(',')})`,
    );
  }
  if (problemType === 'regression') return mean(square(sub(z, p)));
  if (variant === '2024') return mean(square(sub(normalized(z), normalized(p))));
  if (problemType === 'multi_label_classification') return bernoulliDivergence(z, p, temperature);
  return consistencyLoss(z, p, { temperature });
}

/**
 * L_DR = (1/D) sum_{i != j} C_ij^2, C = Zc^T Zc / (N-1) the covariance of the outputs.
 * @param student Z (N, D)
 * @returns (), or null where it is undefined (N = 1) or empty (D = 1)
 */
export function nluDiversityLoss(student: Tensor): Tensor | null {
  const z = rowsOf('nluDiversityLoss', student);
  const [rows, classes] = z.shape as [number, number];
  if (rows === 1 || classes === 1) return null;
  const centred = sub(z, mean(z, { axis: 0, keepDims: true }));
  const covariance = mul(matmul(centred, centred, { transposeA: true }), 1 / (rows - 1));
  const index = arange(0, classes, { device: z.device });
  const diagonal = equal(reshape(index, [classes, 1]), reshape(index, [1, classes]));
  return mul(sum(square(where(diagonal, 0, covariance))), 1 / classes);
}

/**
 * L_SVDR = -(sum of the k largest singular values of Z) / (sum of all of them); 0, with gradient 0, for Z = 0.
 * @param student Z (N, D)
 * @param options k: clamped by `clampSvdTopK`; default 5
 * @returns (), or null where min(N, D) = 1: the ratio is the constant 1
 */
export function nluSvdLoss(student: Tensor, options: { k?: number } = {}): Tensor | null {
  const { k = 5 } = checkKeys('nluSvdLoss', options, 'k');
  const z = rowsOf('nluSvdLoss', student);
  const used = clampSvdTopK(k, z.shape as readonly [number, number]);
  return used === 0 ? null : svdLoss(z, { k: used, norm: 'nuclear' });
}

/**
 * The number of singular values to sum, min(k, min(N, D) - 1); 0: the term is undefined. With all min(N, D) values in the sum the
 * ratio would be the constant 1 with gradient 0, as for every task of at most k classes.
 */
export function clampSvdTopK(k: number, [rows, classes]: readonly [number, number]): number {
  if (!(k >= 1)) throw new ArgumentError(`nluSvdLoss: k must be >= 1, got ${shown(k)}`);
  return Math.min(k, Math.min(rows, classes) - 1);
}

/**
 * Binary cross-entropy with logits, mean over N*D: softplus(z) - y z.
 * @param logits Z (N, D)
 * @param targets (N, D), of the logits' dtype, 0 to 1
 */
export function binaryCrossEntropy(logits: Tensor, targets: Tensor): Tensor {
  return mean(sub(softplus(logits), mul(logits, targets)));
}

/** T^2 mean_N sum_D KL(sigmoid(p/T) || sigmoid(z/T)), from ln sigmoid(x) = -softplus(-x). */
function bernoulliDivergence(z: Tensor, p: Tensor, temperature: number): Tensor {
  checkTemperature('nluConsistencyLoss', temperature);
  const [a, b] = [z, p].map((x) => mul(x.to('f64'), 1 / temperature)) as [Tensor, Tensor];
  const logSigmoid = (x: Tensor): Tensor => neg(softplus(neg(x)));
  const yes = divergenceParts(logSigmoid(b), logSigmoid(a));
  const no = divergenceParts(logSigmoid(neg(b)), logSigmoid(neg(a)));
  const rows = sum(add(yes, no), { axis: -1 });
  return mul(mean(rows), temperature * temperature).to(z.dtype);
}

/**
 * The teacher's entropy at T of each example, in nats: that of its classes, or the sum over independent labels. For the adaptive
 * schedule, which regression does not have.
 * @param teacher P (N, D)
 * @returns (N)
 */
export function teacherEntropyRows(
  teacher: Tensor,
  { problemType, temperature = 2 }: Omit<NluConsistencyOptions, 'variant'>,
): Tensor {
  const p = mul(rowsOf('teacherEntropyRows', teacher.detach()), 1 / temperature);
  if (problemType === 'multi_label_classification') {
    return sum(sub(softplus(p), mul(p, sigmoid(p))), { axis: -1 });
  }
  const logP = logSoftmax(p);
  return neg(sum(mul(exp(logP), logP), { axis: -1 }));
}

/** Rows divided by max(norm, 1e-12). */
function normalized(x: Tensor): Tensor {
  const squared = sum(square(x), { axis: -1, keepDims: true });
  return div(x, sqrt(where(greater(squared, kLeastSquaredNorm), squared, kLeastSquaredNorm)));
}
