/**
 * A term of a training loss. The loss of a step is the task's own loss plus the sum of all terms, each multiplied by its weight
 * at that step. Weights, records, checks and progress all loop over the list of terms.
 */
import { ArgumentError } from '../errors.ts';
import { type HeadLosses, type HeadLossInputs, headLosses, reshape } from '../ops/index.ts';
import { type CallTable, checkCall, kCall } from '../options/call.ts';
import {
  type Check,
  type DefaultContext,
  defaultsOf,
  type OptionTable,
  type ResolvedOf,
} from '../options/option.ts';
import { shown } from '../shown.ts';
import { type DType, Tensor } from '../tensor.ts';
import type { Head } from './fused.ts';
import { headLogits } from './plain.ts';
import type { ProblemType } from './problem_type.ts';
import type { StepOfRun } from './schedules.ts';

/**
 * The rows over which a term is a mean: those of the task's loss, or those of the regularizers (see `positions`). A classifier
 * has one row for each example, and both are the same.
 */
export type TermRows = 'supervised' | 'regularized';

/** The step that a weight is computed for. */
export interface WeightContext extends StepOfRun {
  /**
   * The teacher's uncertainty on the window's rows: the mean entropy of its distribution at T divided by the largest possible one,
   * from 0 to 1. Null unless some term has `readsTeacherEntropy`.
   */
  readonly teacherEntropy: number | null;
}

/**
 * The fused form of a term where the head is one matrix, for which logits are never kept. `divergence` and `entropy` are sums that
 * the pass over the head's chunks computes together with the cross-entropy; `singularValues` uses the head's Gram matrix.
 */
export type FusedForm =
  | { readonly pass: 'divergence'; readonly temperature: number }
  | { readonly pass: 'entropy'; readonly topK: number }
  | { readonly pass: 'singularValues'; readonly k: number; readonly norm: 'frobenius' | 'nuclear' };

/** A warning about a term, for the user; programs may rely on `code`. */
export interface TermNote {
  readonly code: 'nlu_svd_clamped' | 'nlu_terms_undefined' | 'nlu_single_example';
  readonly message: string;
}

/** A term of a loss, with its options. */
export interface Term {
  /** The name in weights, records, progress and events, such as `consistency`. */
  readonly key: string;
  readonly rows: TermRows;
  /** Whether the term reads the teacher, which then runs for every micro-batch. */
  readonly teacher: boolean;
  /** Whether `weightAt` needs the teacher's entropy over the accumulation window. Default false. */
  readonly readsTeacherEntropy?: boolean;
  /** Layers whose output the term reads: 0 is the embedding's, i that of the i-th layer. Default none. */
  readonly hiddenStates?: readonly number[];
  /** The weight at a step; 0 computes the term's value without its gradient. */
  weightAt(at: WeightContext): number;
  /**
   * The definition: the mean over the term's rows in the micro-batch, a scalar on the tape, or null where it is undefined for
   * this micro-batch.
   */
  value(context: TermContext): Tensor | null;
  /** The fused form, used where the model allows it. Default: `value` is used everywhere. */
  readonly fused?: FusedForm;
  /** A warning about the term on logits (N,D) of this shape, which is given once. Default: none. */
  noteOn?(shape: readonly [number, number]): TermNote | null;
}

/** The definition of a built-in term: its options, and how a term is made of them. */
export interface TermDefinition<S extends OptionTable = OptionTable> {
  readonly key: string;
  /** Options in the order of the help; `<key>Weight` is the one that switches the term on. */
  readonly options: S;
  /** Combinations of its options that are refused. Default: none. */
  readonly checks?: readonly Check<ResolvedOf<S>>[];
  create(options: ResolvedOf<S>): Term;
}

/** Makes a built-in term. Options that are not given have their defaults, those of a language model unless a task is named. */
export function bind<S extends OptionTable>(
  { options, create }: TermDefinition<S>,
  given: Readonly<Record<string, unknown>> = {},
  context?: DefaultContext,
): Term {
  const own = Object.fromEntries(
    Object.entries(given).filter(
      ([key, value]) => Object.hasOwn(options, key) && value !== undefined,
    ),
  );
  return create({ ...defaultsOf(options, context), ...own });
}

/** A term of a caller's own; see {@link defineTerm}. */
export interface TermInput {
  /** The name in records and progress, which no other term may have. */
  readonly key: string;
  /** The weight, or a function that gives the weight at a step. */
  readonly weight: number | ((at: WeightContext) => number);
  /** Default `regularized`. */
  readonly rows?: TermRows;
  /** Default false. */
  readonly teacher?: boolean;
  /** Layers whose output the term reads, see {@link Term.hiddenStates}. Default none. */
  readonly hiddenStates?: readonly number[];
  /** The mean over the term's rows in the micro-batch, a scalar on the tape; null where it is undefined. */
  readonly value: (context: TermContext) => Tensor | null;
}

const kTable: CallTable<TermInput> = {
  ...{ key: kCall.text, weight: kCall.any, rows: kCall.text, teacher: kCall.boolean },
  ...{ hiddenStates: kCall.list, value: kCall.any },
};

/** Keys that a record uses for something else. */
const kReservedKeys: readonly string[] = [
  'task',
  'loss',
  'step',
  'epoch',
  'gradNorm',
  'learningRate',
  'custom',
];
const kKey = /^[A-Za-z][A-Za-z0-9_]*$/;

/**
 * Makes a term for the `terms` of a Trainer, beside those of the task.
 * @throws ArgumentError for a key that is no identifier or is used otherwise, or a weight that is no finite number
 * @example
 * const small = defineTerm({ key: 'logitNorm', weight: 1e-4, value: ({ logits }) => mean(square(logits())) });
 */
export function defineTerm(input: TermInput): Term {
  checkCall('defineTerm', input, kTable);
  const { key, weight, rows = 'regularized', teacher = false, hiddenStates, value } = input;
  if (!kKey.test(key) || kReservedKeys.includes(key)) {
    throw new ArgumentError(
      `terms: a key must be an identifier other than ${kReservedKeys.join(', ')}, got ${shown(key)}`,
    );
  }
  const weightAt = (at: WeightContext): number => {
    const found = typeof weight === 'function' ? weight(at) : weight;
    if (typeof found === 'number' && Number.isFinite(found)) return found;
    throw new ArgumentError(
      `terms: the weight of ${key} must be a finite number, got ${shown(found)}`,
    );
  };
  if (typeof weight !== 'function') weightAt({ step: 0, totalSteps: 1, teacherEntropy: null });
  if (typeof value !== 'function') {
    throw new ArgumentError(`terms: the value of ${key} must be a function, got ${shown(value)}`);
  }
  return {
    ...{ key, rows, teacher, weightAt, value },
    ...(hiddenStates === undefined ? {} : { hiddenStates }),
  };
}

/**
 * The value of a term as a scalar of the given dtype; null where the term is undefined.
 * @param onTape whether the value must be on the tape: the term's weight is not 0, and its inputs require a gradient
 * @throws ArgumentError naming the term for anything else
 */
export function termValue(
  { key }: Pick<Term, 'key'>,
  value: unknown,
  { dtype, onTape }: { dtype: DType; onTape: boolean },
): Tensor | null {
  if (value === null) return null;
  const wrong = (what: string): ArgumentError =>
    new ArgumentError(`terms: the value of ${key} ${what}`);
  if (value instanceof Promise) {
    // The promise is never awaited, so its rejection is ignored.
    value.catch(() => {});
    throw wrong('must not be async, because a step only enqueues');
  }
  if (!(value instanceof Tensor)) throw wrong(`must be a tensor or null, got ${shown(value)}`);
  if (value.size !== 1) throw wrong(`must be one number, got the shape (${value.shape.join(',')})`);
  if (onTape && !value.requiresGrad) {
    throw wrong(
      'is not attached to the tape; make it of logits() or states, outside noGrad and without detach()',
    );
  }
  const scalar = value.ndim === 0 ? value : reshape(value, []);
  return scalar.dtype === dtype ? scalar : scalar.to(dtype);
}

/** Tensors from which {@link TermContext} is made. Rows are those of the term: S of them. */
export interface TermContextInput {
  /** (S,C) of the student and of the teacher, the inputs of a head that is one matrix; null: the head is not one matrix. */
  readonly states: Tensor | null;
  readonly teacherStates?: Tensor | null;
  readonly head?: Head | null;
  /** (S,V) where logits exist already; otherwise they are computed from states and head on demand. */
  readonly studentLogits?: Tensor | null;
  readonly teacherLogits?: Tensor | null;
  /** (S) i32 ids, -100 for a row without one; labels of a classifier. */
  readonly targets: Tensor;
  readonly problemType?: ProblemType | null;
  readonly hiddenStates?: readonly Tensor[];
  readonly batch: unknown;
  readonly at: StepOfRun;
}

/**
 * Inputs of a term: the S rows of one micro-batch that it is computed on. Tensors that the term makes are freed when the
 * micro-batch is done.
 */
export class TermContext {
  #logits: Tensor | null = null;
  #teacherLogits: Tensor | null = null;

  constructor(private readonly input: TermContextInput) {}

  /** Hidden states (S,C) as the head takes them, on the tape; null for a model whose head is not one matrix. */
  get states(): Tensor | null {
    return this.input.states;
  }

  /** Hidden states (S,C) of the teacher, without gradient; null where no term asked for a teacher or `states` is null. */
  get teacherStates(): Tensor | null {
    return this.input.teacherStates ?? null;
  }

  /** The head as a matrix (V,C), with its soft-cap and the teacher's own where it has one. */
  get head(): Head | null {
    return this.input.head ?? null;
  }

  /** Targets of the rows: (S) i32 ids, -100 for none; for a classifier the labels, (S) i32 or (S,D) f32. */
  get targets(): Tensor {
    return this.input.targets;
  }

  /** The kind of labels of a classifier; null for a language model. */
  get problemType(): ProblemType | null {
    return this.input.problemType ?? null;
  }

  /** Outputs of the layers that the term asked for, in its order: (N,C) each, all rows of the batch. */
  get hiddenStates(): readonly Tensor[] {
    return this.input.hiddenStates ?? [];
  }

  /** The micro-batch as the data source gave it. */
  get batch(): unknown {
    return this.input.batch;
  }

  /** From 0. */
  get step(): number {
    return this.input.at.step;
  }

  get totalSteps(): number {
    return this.input.at.totalSteps;
  }

  /** Logits (S,V) of the student, on the tape; made at the first call, so a term that only needs states costs none. */
  readonly logits = (): Tensor => {
    const { studentLogits, states, head } = this.input;
    this.#logits ??= studentLogits ?? ofHead(states, head?.weight, head?.softcap);
    return this.#logits;
  };

  /** Logits (S,V) of the teacher, without gradient. @throws ArgumentError for a term that does not say `teacher: true` */
  readonly teacherLogits = (): Tensor => {
    const { teacherLogits, teacherStates, head } = this.input;
    if (!teacherLogits && !teacherStates) {
      throw new ArgumentError(
        'terms: a term that reads the teacher must say so; define it with teacher: true',
      );
    }
    this.#teacherLogits ??=
      teacherLogits ?? ofHead(teacherStates, head?.teacherWeight ?? head?.weight, head?.softcap);
    return this.#teacherLogits;
  };

  /**
   * Runs the fused pass over the head on these rows: sums of cross-entropy, divergence and entropy with their gradients, without
   * logits. See `headLosses`. @throws ArgumentError where the head is not one matrix
   */
  readonly headLosses = (
    options: Omit<HeadLossInputs, 'hidden' | 'teacher' | 'head' | 'teacherHead'>,
  ): HeadLosses => {
    const { states, head, teacherStates = null } = this.input;
    if (!states || !head)
      throw new ArgumentError(
        'terms: headLosses needs a head that is a matrix, which a classifier does not have; use logits() instead',
      );
    return headLosses({
      ...options,
      ...{ hidden: states, teacher: teacherStates, head: head.weight },
      teacherHead: teacherStates ? (head.teacherWeight ?? null) : null,
      softcap: head.softcap ?? 0,
    });
  };
}

function ofHead(
  states: Tensor | null | undefined,
  weight: Tensor | undefined,
  softcap = 0,
): Tensor {
  if (!states || !weight)
    throw new ArgumentError(
      'terms: there are neither logits nor hidden states with a head; give TermContext one of them',
    );
  const logits = headLogits(states, weight, { softcap });
  // In f32, so that a term's own ops do not round each result to half precision.
  return logits.dtype === 'bf16' || logits.dtype === 'f16' ? logits.to('f32') : logits;
}
