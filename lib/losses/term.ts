/**
 * A term of a training loss. The loss of a step is the task's own loss plus the sum of all terms, each multiplied by its weight
 * at that step. Weights, records, checks and progress all loop over the list of terms.
 */
import { ArgumentError } from '../errors.ts';
import { type HeadLosses, type HeadLossInputs, headLosses, reshape } from '../ops/index.ts';
import { type CallTable, checkCall, checkKeys, kCall } from '../options/call.ts';
import {
  type Check,
  type DefaultContext,
  defaultsOf,
  type OptionTable,
  type ResolvedOf,
} from '../options/option.ts';
import { shown } from '../shown.ts';
import { type DType, Tensor, unscoped } from '../tensor.ts';
import { headLogits } from './plain.ts';
import type { ProblemType } from './problem_type.ts';

/** A step of a run. */
export interface StepOfRun {
  /** From 0. */
  step: number;
  /** S. */
  totalSteps: number;
}

/** The output head as the losses use it. */
export interface Head {
  /** (V, C). */
  weight: Tensor;
  /** Logits are softcap * tanh(h W^T / softcap). Default 0: not capped. */
  softcap?: number;
  /** (V, C) of the teacher, where it has a head of its own. */
  teacherWeight?: Tensor | null;
}

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

/** Schedule of the weight of the consistency term. */
export type ConsistencySchedule = 'constant' | 'cosine' | 'adaptive';
/** Schedule of the weights of diversity and SVD. */
export type RegularizerSchedule = 'constant' | 'two_phase' | 'linear_warmup' | 'quadratic_warmup';

/**
 * The weight l1 at a step. `constant`: l1. `cosine`: from l1 down to a tenth of it, .1 l1 + .9 l1 (1 + cos(pi s/S))/2. `adaptive`
 * depends on the teacher and not on the step, see adaptiveConsistencyWeight.
 */
export function consistencyWeightAt(
  schedule: Exclude<ConsistencySchedule, 'adaptive'>,
  weight: number,
  { step, totalSteps }: StepOfRun,
): number {
  checkStep(step, totalSteps);
  if (schedule === 'constant') return weight;
  const progress = totalSteps > 0 ? step / totalSteps : 0;
  return 0.1 * weight + (0.9 * weight * (1 + Math.cos(Math.PI * progress))) / 2;
}

/** Bounds of the `adaptive` schedule. */
export interface AdaptiveOptions {
  /** l1, from which the defaults of the bounds come. */
  weight: number;
  /** Default, and null: .1 l1. */
  min?: number | null;
  /** Default, and null: l1. */
  max?: number | null;
}

/** The bounds with their defaults filled in. */
export function adaptiveBounds({ weight, min, max }: AdaptiveOptions): {
  min: number;
  max: number;
} {
  return { min: min ?? 0.1 * weight, max: max ?? weight };
}

/**
 * The weight l1 of the adaptive schedule, which is larger for a confident teacher. It is
 *
 *     l1 = min + (max - min) c, c = 1 - clamp(meanEntropy / ln V, 0, 1).
 *
 * @param meanEntropy of the teacher's distribution at temperature T, over the selected rows, in nats
 * @param vocabulary V; V = 1 gives c = 1
 */
export function adaptiveConsistencyWeight(
  meanEntropy: number,
  vocabulary: number,
  options: AdaptiveOptions,
): number {
  checkKeys('adaptiveConsistencyWeight', options, 'weight min max');
  return adaptiveWeight(meanEntropy, Math.log(vocabulary), options);
}

/** The weight of adaptiveConsistencyWeight() for an entropy of at most `most` nats, which is ln V there; 0 gives c = 1. */
function adaptiveWeight(meanEntropy: number, most: number, options: AdaptiveOptions): number {
  const { min, max } = adaptiveBounds(options);
  const share = most > 0 ? meanEntropy / most : 0;
  const confidence = 1 - Math.min(Math.max(share, 0), 1);
  return min + (max - min) * confidence;
}

/** The weight of the consistency term, by a schedule. */
export function consistencySchedule(
  schedule: ConsistencySchedule,
  options: AdaptiveOptions,
): Term['weightAt'] {
  if (schedule === 'adaptive') {
    return ({ teacherEntropy }) => adaptiveWeight(teacherEntropy ?? 0, 1, options);
  }
  return (at) => consistencyWeightAt(schedule, options.weight, at);
}

/** Settings of the schedules of diversity and SVD. */
export interface RegularizerScheduleOptions {
  /** Share w of the run before the ramp of two_phase. Default .2. */
  warmupRatio?: number;
  /** Share r of the run in which two_phase rises. Default .05. */
  rampRatio?: number;
  /** Number w of steps in which linear_warmup and quadratic_warmup rise; 0 gives 1 at once. Default 0. */
  warmupSteps?: number;
  /** Whether to round two_phase's boundaries to whole steps, as in the published code. Default false. */
  integerSteps?: boolean;
}

/**
 * The factor of l2 and l3 at a step, from 0 to 1. two_phase: clamp((s - w S)/(r S), 0, 1); linear_warmup: min(1, s/w);
 * quadratic_warmup: the square of that.
 */
export function regularizerFactorAt(
  schedule: RegularizerSchedule,
  { step, totalSteps }: StepOfRun,
  options: RegularizerScheduleOptions = {},
): number {
  checkKeys('regularizerFactorAt', options, 'warmupRatio rampRatio warmupSteps integerSteps');
  const { warmupRatio = 0.2, rampRatio = 0.05, warmupSteps = 0, integerSteps = false } = options;
  checkStep(step, totalSteps);
  switch (schedule) {
    case 'constant':
      return 1;
    case 'two_phase': {
      const start = integerSteps ? Math.trunc(warmupRatio * totalSteps) : warmupRatio * totalSteps;
      const ramp = integerSteps
        ? Math.max(Math.trunc(rampRatio * totalSteps), 1)
        : rampRatio * totalSteps;
      if (ramp === 0) return step >= start ? 1 : 0;
      return Math.min(Math.max((step - start) / ramp, 0), 1);
    }
    case 'linear_warmup':
      return warmupSteps > 0 ? Math.min(1, step / warmupSteps) : 1;
    case 'quadratic_warmup':
      return warmupSteps > 0 ? Math.min(1, step / warmupSteps) ** 2 : 1;
  }
}

/** The weight of diversity or SVD, by a schedule. */
export function growingSchedule(
  schedule: RegularizerSchedule,
  weight: number,
  options: RegularizerScheduleOptions,
): Term['weightAt'] {
  return (at) => weight * regularizerFactorAt(schedule, at, options);
}

function checkStep(step: number, totalSteps: number): void {
  if (!(step >= 0) || !(totalSteps >= 0)) {
    throw new ArgumentError(
      `schedule: step and totalSteps must be >= 0, got ${step} of ${totalSteps}`,
    );
  }
}

/** Rows of a micro-batch, or of a whole window, by the kind of term that reads them. */
export type TermCounts = Readonly<Record<TermRows, number>>;

/** The value of a term in one micro-batch, as an element of a tensor. */
export interface TermValue {
  readonly key: string;
  readonly tensor: Tensor;
  /** Its index in the tensor. */
  readonly index: number;
  /** The factor that makes the number the sum of the term over its rows; null: the number is the mean over its rows. */
  readonly toSum: number | null;
}

/** The loss of one micro-batch, enqueued and not read back. */
export interface ComputedLoss {
  /** The micro-batch's share of the step's loss, a scalar on the tape; null where it has no row of any kind. */
  readonly loss: Tensor | null;
  readonly values: readonly TermValue[];
  readonly counts: TermCounts;
}

/** Mean values of the terms over a window; null: undefined in every micro-batch. */
export type TermValues = { task: number } & Record<string, number | null>;

/** The key of the task's own loss. */
export const kTask = 'task';

/** The values of a loss's terms in micro-batches of a window, or in a part of them; {@link TermSums.read} gives their means over the window. */
export class TermSums {
  readonly #rows = new Map<string, TermRows>([[kTask, 'supervised']]);
  #microBatches: Pick<ComputedLoss, 'values' | 'counts'>[] = [];

  constructor(terms: readonly Pick<Term, 'key' | 'rows'>[]) {
    for (const { key, rows } of terms) this.#rows.set(key, rows);
  }

  /** Adds a micro-batch. A value of another key than those of the terms is a mean over the supervised rows. */
  add({ values, counts }: Pick<ComputedLoss, 'values' | 'counts'>): void {
    const kept = new Map<Tensor, Tensor>();
    const keep = (tensor: Tensor): Tensor => {
      const found = kept.get(tensor) ?? unscoped(() => tensor.detach());
      kept.set(tensor, found);
      return found;
    };
    const held = values.map((value) => ({ ...value, tensor: keep(value.tensor) }));
    for (const { key } of values) if (!this.#rows.has(key)) this.#rows.set(key, 'supervised');
    this.#microBatches.push({ values: held, counts });
  }

  /** Moves everything of another part of the window here. */
  merge(other: TermSums): void {
    for (const [key, rows] of other.#rows) this.#rows.set(key, rows);
    this.#microBatches.push(...other.#microBatches.splice(0));
  }

  /**
   * Waits for the values, and frees what was kept.
   * @param totals rows of the whole window, some of which may be in parts that are added elsewhere
   */
  async read(totals: TermCounts): Promise<TermValues> {
    // A value that is a sum is divided by its rows once, at the end.
    const found = new Map<string, { sum: number; factor: number }>();
    for (const { values, counts } of this.#microBatches) {
      const numbers = new Map<Tensor, ArrayLike<number>>();
      for (const { key, tensor, index, toSum } of values) {
        const data = numbers.get(tensor) ?? ((await tensor.data()) as Float64Array);
        numbers.set(tensor, data);
        const rows = this.#rows.get(key) as TermRows;
        const share = toSum === null ? perRow(counts[rows], totals[rows]) : 1;
        const factor = toSum === null ? 1 : perRow(toSum, totals[rows]);
        const sum = (found.get(key)?.sum ?? 0) + Number(data[index]) * share;
        found.set(key, { sum, factor });
      }
    }
    const result: Record<string, number | null> = {};
    for (const key of this.#rows.keys()) {
      const value = found.get(key);
      result[key] = value === undefined ? null : value.sum * value.factor;
    }
    this.dispose();
    return { ...result, task: result[kTask] ?? 0 };
  }

  /** Frees what was kept without reading it. */
  dispose(): void {
    for (const { values } of this.#microBatches) for (const { tensor } of values) tensor.dispose();
    this.#microBatches = [];
  }
}

/** The factor weight / rows; 0 without rows, since a window without rows of a kind has no such term. */
export function perRow(weight: number, rows: number): number {
  return rows > 0 ? weight / rows : 0;
}
