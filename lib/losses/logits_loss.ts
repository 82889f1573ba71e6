/**
 * The loss of a classification or regression model on one micro-batch of an accumulation window: the task's own, and the terms
 * of a list, each with its weight. All are weighted by the micro-batch's share of the window's examples, so that the task's loss and
 * the consistency term agree exactly between 1 x 8 and 8 x 1 (micro-batches x examples); diversity and SVD are computed on the matrix
 * of each micro-batch.
 */
import { ArgumentError } from '../errors.ts';
import { add, crossEntropy, mean, mul, reshape, square, stack, sub, zeros } from '../ops/index.ts';
import { type CallTable, checkCall, kCall, oneOf } from '../options/call.ts';
import { noGrad, type Tensor } from '../tensor.ts';
import type { TermWeights } from './head_loss.ts';
import { binaryCrossEntropy } from './nlu_terms.ts';
import { rowsOf } from './plain.ts';
import { kProblemTypes, type ProblemType } from './problem_type.ts';
import {
  type ComputedLoss,
  kTask,
  type StepOfRun,
  type Term,
  TermContext,
  type TermCounts,
  type TermNote,
  type TermValue,
  termValue,
} from './term.ts';

/** Options of {@link LogitsLoss}. */
export interface LogitsLossOptions {
  /** The meaning of the outputs, and with it the task's loss. Default 'single_label_classification'. */
  readonly problemType?: ProblemType | undefined;
  /** Called once for each way in which a term differs from what was asked for. Default: no warnings. */
  readonly onWarning?: ((note: TermNote) => void) | undefined;
}

/** The kinds of these options. */
export const LOGITS_LOSS_TABLE: CallTable<LogitsLossOptions> = {
  problemType: oneOf(kProblemTypes),
  onWarning: kCall.function,
};

/** The input of {@link LogitsLoss.compute}. */
export interface LogitsLossInput {
  /** Z (N, D), on the tape. */
  readonly logits: Tensor;
  /** P (N, D); needed while a term reads the teacher. */
  readonly teacherLogits?: Tensor | null;
  /** (N) i32 class ids; for regression and multi-label classification f32, (N, D), or (N) where D = 1. */
  readonly labels: Tensor;
  /** Weights at this step, by the terms' keys; 0 or left out computes a term's value without its gradient. */
  readonly weights: TermWeights;
  /** Examples of the whole accumulation window. Default N. */
  readonly windowExamples?: number;
  /** Outputs of the layers that terms ask for, by layer. */
  readonly hiddenStates?: ReadonlyMap<number, Tensor>;
  readonly batch?: unknown;
  readonly at?: StepOfRun;
}

/** The loss of a classification or regression head on one micro-batch: the task's, and the terms of a list by their weights. */
export class LogitsLoss {
  readonly problemType: ProblemType;
  readonly #onWarning: (note: TermNote) => void;
  readonly #noted = new Set<string>();

  constructor(
    readonly terms: readonly Term[],
    options: LogitsLossOptions = {},
  ) {
    checkCall('LogitsLoss', options, LOGITS_LOSS_TABLE);
    const { problemType = 'single_label_classification', onWarning = () => {} } = options;
    this.problemType = problemType;
    this.#onWarning = onWarning;
  }

  /** Whether some term reads the teacher. */
  get readsTeacher(): boolean {
    return this.terms.some(({ teacher }) => teacher);
  }

  /** Enqueues the loss of one micro-batch; nothing is read back. */
  compute(micro: LogitsLossInput): ComputedLoss & { loss: Tensor } {
    const { teacherLogits = null, labels, weights } = micro;
    const z = rowsOf('LogitsLoss', micro.logits);
    const [examples, outputs] = z.shape as [number, number];
    if (this.readsTeacher && !teacherLogits) {
      throw new ArgumentError('LogitsLoss: a term reads the teacher; pass teacherLogits');
    }
    this.#note([examples, outputs]);
    const task = nluTaskLoss(z, labels, this.problemType);
    const values = this.terms.map((term) => {
      const compute = () => this.#value(term, micro, z);
      return (weights[term.key] ?? 0) === 0 ? noGrad(compute) : compute();
    });
    const share = examples / (micro.windowExamples ?? examples);
    let loss = mul(task, share);
    for (const [i, { key }] of this.terms.entries()) {
      const value = values[i];
      const factor = (weights[key] ?? 0) * share;
      if (value && factor !== 0) loss = add(loss, mul(value, factor));
    }
    const counts: TermCounts = { supervised: examples, regularized: examples };
    return { loss, values: this.#valuesOf(task, values), counts };
  }

  #value(term: Term, micro: LogitsLossInput, z: Tensor): Tensor | null {
    const { teacherLogits = null, labels, hiddenStates, batch, at } = micro;
    const value = term.value(
      new TermContext({
        states: null,
        studentLogits: z,
        teacherLogits: term.teacher ? teacherLogits : null,
        targets: labels,
        problemType: this.problemType,
        hiddenStates: (term.hiddenStates ?? []).map((layer) => hiddenStates?.get(layer) as Tensor),
        batch: batch ?? null,
        at: at ?? { step: 0, totalSteps: 1 },
      }),
    );
    const onTape = (micro.weights[term.key] ?? 0) !== 0 && z.requiresGrad;
    return termValue(term, value, { dtype: z.dtype, onTape });
  }

  /** The values of the terms in one tensor, so that a window reads one for each micro-batch. */
  #valuesOf(task: Tensor, values: readonly (Tensor | null)[]): TermValue[] {
    const { dtype, device } = task;
    const tensor = noGrad(() =>
      stack([task, ...values].map((value) => value?.detach() ?? zeros([], { dtype, device }))),
    );
    const found: TermValue[] = [{ key: kTask, tensor, index: 0, toSum: null }];
    for (const [i, { key }] of this.terms.entries()) {
      if (values[i]) found.push({ key, tensor, index: i + 1, toSum: null });
    }
    return found;
  }

  #note(shape: readonly [number, number]): void {
    for (const term of this.terms) {
      const note = term.noteOn?.(shape) ?? null;
      if (note === null || this.#noted.has(note.code)) continue;
      this.#noted.add(note.code);
      this.#onWarning(note);
    }
  }
}

/**
 * The task's own loss, a mean over the examples: cross-entropy, mean squared error, or binary cross-entropy.
 * @param logits Z (N, D)
 * @param labels as in {@link LogitsLossInput}
 */
export function nluTaskLoss(logits: Tensor, labels: Tensor, problemType: ProblemType): Tensor {
  const z = rowsOf('nluTaskLoss', logits);
  const [rows, outputs] = z.shape as [number, number];
  const classes = problemType === 'single_label_classification';
  const fits = labels.size === (classes ? rows : rows * outputs) && labels.shape[0] === rows;
  if (!fits || classes !== (labels.dtype === 'i32')) {
    const wanted = classes ? `(${rows}) i32` : `(${rows},${outputs}) of a float type`;
    throw new ArgumentError(
      `nluTaskLoss: labels of ${problemType} must be ${wanted}, got (${labels.shape.join(',')}) ${labels.dtype}`,
    );
  }
  if (classes) return crossEntropy(z, labels);
  const targets = reshape(labels.dtype === z.dtype ? labels : labels.to(z.dtype), z.shape);
  return problemType === 'regression'
    ? mean(square(sub(z, targets)))
    : binaryCrossEntropy(z, targets);
}
