// The language-model head fused with its losses: logits exist for one chunk of rows at a time.
import { native } from '../native.ts';
import { checkKeys } from '../options/call.ts';
import { Tensor } from '../tensor.ts';

/** Inputs of the fused head: M rows (the selected positions), C channels, V vocabulary. */
export interface HeadInputs {
  /** (M, C) after the final norm, any float dtype. */
  hidden: Tensor;
  /**
   * The teacher: its hidden states (M, C), which get no gradient, or its summary, for a head that is frozen and not soft-capped.
   * Default, and null: none, and so no consistency term.
   */
  teacher?: Tensor | TeacherSummary | null;
  /** (V, C). It gets a gradient if it requires one. */
  head: Tensor;
  /** (V, C) of a teacher that is given by its hidden states, where its head differs. Default, and null: `head`. */
  teacherHead?: Tensor | null;
  /** (M) i32: the id that each row must predict, -100 for a row without task term. Default, and null: no row has one. */
  targets?: Tensor | null;
  /** Logits are softcap * tanh(logitScale h W^T / softcap), for both models. Default 0: logitScale h W^T. */
  softcap?: number;
  /** Factor of the logits of both models; on CUDA 1 alone. Default 1. */
  logitScale?: number;
  /** T of the consistency term. Default 1. */
  temperature?: number;
  /** K of the entropy; 0: the whole vocabulary; -1: no entropy at all. Default 0. */
  entropyTopK?: number;
  /** Bound on the logits' scratch; 0 (default): 100 MiB on the CPU. */
  chunkBytes?: number;
}

/** The inputs of {@link headLosses}: rows, targets and the factor of each sum in the loss. */
export interface HeadLossInputs extends HeadInputs {
  /** (M) u8: 0 for a row that is in the task term alone. Default, and null: every row is in the regularizers. */
  regularized?: Tensor | null;
  /** Factors of the sums in the loss; the caller divides by its counts. Default 0, with `scales` 1. */
  taskScale?: number;
  consistencyScale?: number;
  diversityScale?: number;
  /** (3) f64: the same factors (multiplied by those above) on the device, which a graph reads at every run. */
  scales?: Tensor | null;
  /** (M) f64: factor of each row in the loss and its gradients, which itself gets none; on the CPU alone. Default, and null: ones. */
  factors?: Tensor | null;
  /** Whether each row's log-probability of its target is returned, too; on the CPU alone. Default false. */
  logProbabilities?: boolean;
}

/** The values of {@link headLosses}. */
export interface HeadLosses {
  /** () f64, differentiable in hidden and head. */
  loss: Tensor;
  /** (4) f64: the sums of the three terms over the rows, without scales and factors, and the loss. */
  sums: Tensor;
  /** (M) f64, differentiable in hidden and head: log p of each row's target, 0 for a row without one; given where it is asked for. */
  logProbabilities?: Tensor;
}

/**
 * Computes the losses of a head in one pass over chunks of its rows. The loss is
 *
 *     loss = sum factor * (taskScale * CE + consistencyScale * T^2 KL(softmax(y/T) || softmax(z/T)) - diversityScale * H),
 *
 * where H is the entropy of the K largest logits (renormalised; ties: lowest index). Gradients are computed in the same pass.
 * Where log-probabilities are differentiated, too, rows of the loss's gradient serve if the head is frozen and the loss is of the
 * task term alone, without `scales` and `factors`; otherwise the pass runs again in backward.
 * @throws UnsupportedError for a summary of the teacher beside a head that is trained or soft-capped, for factors that want a
 * gradient, and on CUDA for what the CPU alone computes
 */
export function headLosses(inputs: HeadLossInputs): HeadLosses {
  checkKeys('headLosses', inputs, kLossInputs);
  const { taskScale, consistencyScale, diversityScale, logProbabilities = false } = inputs;
  const usual = inputs.scales ? 1 : 0;
  const options = {
    ...optionsOf(inputs),
    taskScale: taskScale ?? usual,
    consistencyScale: consistencyScale ?? usual,
    diversityScale: diversityScale ?? usual,
  };
  const made = native.headLosses(operandsOf(inputs), options, logProbabilities);
  const [loss, sums, logs] = tensorsOf(made);
  return { loss, sums, ...(logs && { logProbabilities: logs }) };
}

const kSummaryInputs = 'head teacherHead targets temperature softcap logitScale chunkBytes';
const kInputs = `hidden teacher entropyTopK ${kSummaryInputs}` as const;
const kRowInputs = `${kInputs} entropyTemperature` as const;
const kScales = 'taskScale consistencyScale diversityScale scales factors';
const kLossInputs = `${kInputs} regularized ${kScales} logProbabilities` as const;

const tensorsOf = (made: readonly number[]) =>
  made.map((handle) => new Tensor(handle)) as [Tensor, Tensor, Tensor?];
const handleOf = (tensor: Tensor | null) => tensor?.handle ?? null;

/** The teacher of the head's native functions: by its hidden states, by its summary, or none. */
function teacherOf(teacher: Tensor | TeacherSummary | null, head: Tensor | null) {
  const isLive = teacher instanceof Tensor;
  const { mean = null, entropy = null, logProbability = null } = isLive ? {} : (teacher ?? {});
  return {
    hidden: isLive ? teacher.handle : null,
    head: handleOf(head),
    mean: handleOf(mean),
    entropy: handleOf(entropy),
    logProbability: handleOf(logProbability),
  };
}

/** The tensors of the head's native functions. */
function operandsOf({
  hidden,
  head,
  teacher = null,
  teacherHead = null,
  targets = null,
  regularized = null,
  scales = null,
  factors = null,
}: HeadInputs & Pick<HeadLossInputs, 'regularized' | 'scales' | 'factors'>) {
  return {
    hidden: hidden.handle,
    teacher: teacherOf(teacher, teacherHead),
    head: head.handle,
    targets: handleOf(targets),
    regularized: handleOf(regularized),
    scales: handleOf(scales),
    factors: handleOf(factors),
  };
}

/** The numbers of the head's native functions, without scales. */
function optionsOf({
  softcap = 0,
  logitScale = 1,
  temperature = 1,
  entropyTemperature = 1,
  entropyTopK = 0,
  chunkBytes = 0,
}: Pick<
  HeadRowInputs,
  'softcap' | 'logitScale' | 'temperature' | 'entropyTemperature' | 'entropyTopK' | 'chunkBytes'
>) {
  const scales = { taskScale: 0, consistencyScale: 0, diversityScale: 0 };
  return {
    ...{ ...scales, softcap, logitScale, temperature, entropyTemperature },
    ...{ entropyTopK, chunkBytes },
  };
}

/** The quantities of a teacher that the consistency term needs. */
export interface TeacherSummary {
  /** (M, C) = sum_j q_j head_j with q = softmax(y / T); in f32, f64 beside f64. */
  readonly mean: Tensor;
  /** (M) f64: the entropy of q, in nats. */
  readonly entropy: Tensor;
  /** (M) f64: the teacher's log-probability of each row's target at T = 1, 0 for a row without one; given with `targets`. */
  readonly logProbability?: Tensor;
}

/**
 * Summarises a teacher, so that it need not run again: headLosses() and headRows() take the summary as their `teacher`. The
 * divergence then is
 *
 *     KL(q || p) = lse(z / T) - h . mean / T - entropy,
 *
 * which is exact while the student's head is linear and frozen.
 * @param teacher (M, C) hidden states after the final norm; with `targets`, on the CPU alone, the summary has their log-probabilities
 * @throws UnsupportedError for a head that is trained or soft-capped
 */
export function teacherSummary(
  teacher: Tensor,
  options: Pick<
    HeadInputs,
    'head' | 'teacherHead' | 'targets' | 'temperature' | 'softcap' | 'logitScale' | 'chunkBytes'
  >,
): TeacherSummary {
  checkKeys('teacherSummary', options, kSummaryInputs);
  const { head, teacherHead = null, targets = null } = options;
  const made = native.teacherSummary(
    teacher.handle,
    handleOf(teacherHead),
    head.handle,
    handleOf(targets),
    optionsOf(options),
  );
  const [mean, entropy, logProbability] = tensorsOf(made);
  return { mean, entropy, ...(logProbability && { logProbability }) };
}

/** The inputs of {@link headRows}. */
export interface HeadRowInputs extends HeadInputs {
  /** Temperature of the distribution whose entropy is computed. Default 1. */
  entropyTemperature?: number;
}

/**
 * Computes the terms of each row, without gradients: cross-entropy (0 for a row without target), T^2 KL(teacher || student)
 * (0 without a teacher) and entropy, in nats.
 * @returns (M, 3) f64
 */
export function headRows(inputs: HeadRowInputs): Tensor {
  checkKeys('headRows', inputs, kRowInputs);
  return new Tensor(native.headRows(operandsOf(inputs), optionsOf(inputs)));
}

/** Options of {@link svdRatio}. */
export interface SvdRatioOptions {
  /** Singular values summed. Default 10. */
  k?: number;
  /** The denominator. Default 'frobenius'. */
  norm?: 'frobenius' | 'nuclear';
}

/**
 * The SVD term -(sum of the k largest singular values of hidden W^T) / norm, computed from gram = W^T W for a head that is linear
 * and frozen. It is 0, with gradient 0, for zero logits; components below 1e-6 of the largest have no gradient.
 * @param hidden (M, C)
 * @param gram (C, C) f64, from `gram(head)`
 * @returns () f64, differentiable in hidden
 */
export function svdRatioGram(hidden: Tensor, gram: Tensor, options: SvdRatioOptions = {}): Tensor {
  const { k = 10, norm = 'frobenius' } = checkKeys('svdRatioGram', options, 'k norm');
  return new Tensor(native.svdRatioGram(hidden.handle, gram.handle, k, norm));
}

/**
 * The SVD term computed from tiles of the logits, for a head that is trained or whose logits are soft-capped.
 * @param hidden (M, C)
 * @param head (V, C)
 * @returns () f64, differentiable in hidden and head
 */
export function svdRatio(
  hidden: Tensor,
  head: Tensor,
  options: SvdRatioOptions & { softcap?: number; chunkBytes?: number } = {},
): Tensor {
  checkKeys('svdRatio', options, 'k norm softcap chunkBytes');
  const { k = 10, norm = 'frobenius', softcap = 0, chunkBytes = 0 } = options;
  return new Tensor(native.svdRatio(hidden.handle, head.handle, k, norm, softcap, chunkBytes));
}
