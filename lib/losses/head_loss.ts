/**
 * The loss of a language model on one micro-batch of an accumulation window: the cross-entropy, and the terms of a list, each
 * with its weight. Every mean is weighted by the micro-batch's share of the window's rows: the task's by supervised rows, the
 * others' by the rows of the regularizers. So terms that are means over rows agree exactly between 1 x 8 and 8 x 1 (micro-batches x
 * examples); the SVD term is computed on the matrix of each micro-batch.
 *
 * Terms with a fused form never read logits. The others are computed from the logits of their rows in plain tensor ops.
 */
import {
  type Positions,
  type RowsOfBatch,
  type SelectedRows,
  selectRows,
} from '../data/select_rows.ts';
import { ArgumentError } from '../errors.ts';
import { kIgnoredTarget } from '../ignored_target.ts';
import { kHeadTerm } from '../ops/head_terms.ts';
import {
  add,
  headLosses,
  headRows,
  indexSelect,
  mul,
  randn,
  type TeacherSummary,
  teacherSummary,
} from '../ops/index.ts';
import { gram } from '../ops/linalg.ts';
import { svdRatio, svdRatioGram } from '../ops/losses.ts';
import { type CallTable, checkCall, checkKeys, oneOf, wholeNumber } from '../options/call.ts';
import { DTYPE_BYTES, noGrad, scope, Tensor, tensor, unscoped } from '../tensor.ts';
import {
  type ComputedLoss,
  type FusedForm,
  type Head,
  kTask,
  perRow,
  type StepOfRun,
  type Term,
  TermContext,
  type TermCounts,
  type TermRows,
  type TermValue,
  termValue,
} from './term.ts';

export type { SelectedRows, TeacherSummary };

/** Weights of the terms at a step, by their keys; 0 or left out computes a term's value without its gradient. */
export type TermWeights = Readonly<Record<string, number>>;

/** Options of {@link HeadLoss}. */
export interface HeadLossOptions {
  /** Rows of the regularizers. Default supervised. */
  readonly positions?: Positions | undefined;
  /** Limit, in bytes, on the logits that are computed at one time; 0 for the default of the device. */
  readonly chunkBytes?: number | undefined;
}

/** The kinds of these options. */
export const HEAD_LOSS_TABLE: CallTable<HeadLossOptions> = {
  positions: oneOf(['supervised', 'non_padding', 'label_aligned'] satisfies Positions[]),
  chunkBytes: wholeNumber({ least: 0 }),
};

/** The input of {@link HeadLoss.compute}. */
export interface HeadLossInput {
  /** (N, C) after the final norm, on the tape; or (M, C), the rows of {@link HeadLoss.select} alone. */
  readonly hidden: Tensor;
  /**
   * The teacher, needed while a term reads it: its hidden states (N, C) or (M, C), without gradient, or a summary of its selected
   * rows; see {@link HeadLoss.summarize}.
   */
  readonly teacher?: Tensor | TeacherSummary | null;
  /** The rows of the teacher, where it ran on a part of them: `teacher` is then (rows, C), and null for no rows. */
  readonly part?: TeacherPart | null;
  readonly batch: RowsOfBatch;
  /** The rows of the batch that terms use, where they are chosen already. Default: `select(batch)`. */
  readonly selected?: SelectedRows;
  readonly weights: TermWeights;
  /** Rows of the whole window. Default: this micro-batch is the whole window. */
  readonly window?: TermCounts;
  /** Outputs (N, C) of the layers that terms ask for, by layer. */
  readonly hiddenStates?: ReadonlyMap<number, Tensor>;
  /** The position in the run, for terms that read it. Default: step 0 of 1. */
  readonly at?: StepOfRun;
  /** The micro-batch as the data source gave it, for terms that read it. Default: `batch`. */
  readonly source?: unknown;
  /** The host's part of the inputs on the device, where {@link HeadLoss.prepare} made it already; the caller disposes of it. */
  readonly prepared?: LossInputs;
}

/** The rows that have a teacher, as indices into the selected rows, ascending. */
export interface TeacherPart {
  readonly rows: Int32Array;
  /** The selected rows without one. */
  readonly others: Int32Array;
  /** The factor of a row's divergence that makes its expectation that of all rows: one over the probability of having a teacher. */
  readonly factor: number;
}

/** Inputs of a micro-batch's loss that come from the host, as tensors on the device, since they change from step to step. */
export interface LossInputs {
  readonly targets: Tensor; // (M) i32
  /** null: all rows are regularized. */
  readonly regularized: Tensor | null; // (M) u8
  /** Indices of the regularizers' rows among the selected ones, where they are not all and a term needs them apart. */
  readonly regularizedRows: Tensor | null; // (S) i32
  /** Factors by which the sums of cross-entropy, divergence and entropy enter the loss. */
  readonly scales: Tensor; // (3) f64
  /** Factors of the other terms by key, () f64 each; terms without rows in the micro-batch are left out. */
  readonly factors: Readonly<Record<string, Tensor>>;
}

/** The selected rows of a micro-batch, with their inputs on the device. */
interface PreparedRows extends Omit<HeadLossInput, 'teacher'> {
  readonly teacher: Tensor | TeacherSummary | null;
  readonly selected: SelectedRows;
  readonly inputs: LossInputs;
}

/** The tensors of one pass over the head, and what it gives. */
type HeadPass = Pick<LossInputs, 'targets' | 'regularized' | 'scales'> &
  Pick<PreparedRows, 'hidden' | 'teacher'>;
interface HeadSums {
  readonly loss: Tensor; // () f64, on the tape
  readonly sums: Tensor; // (4) f64: sums of cross-entropy, T^2 KL and entropy, and the loss of these three
}

/** Means of the terms outside the head's pass, by key. */
type Means = Readonly<Record<string, Tensor>>; // () f64

type Pass<P extends FusedForm['pass']> = Extract<FusedForm, { pass: P }>;

/** The loss of a language model on one micro-batch: the cross-entropy, and the terms of a list by their weights. */
export class HeadLoss {
  readonly #divergence: (Term & { fused: Pass<'divergence'> }) | null;
  readonly #entropy: (Term & { fused: Pass<'entropy'> }) | null;
  /** Terms that are computed outside the head's pass. */
  readonly #otherTerms: readonly Term[];
  #gram: HeadGram | null = null;
  readonly positions: Positions;
  readonly chunkBytes: number;

  constructor(
    readonly head: Head,
    readonly terms: readonly Term[],
    options: HeadLossOptions = {},
  ) {
    checkCall('HeadLoss', options, HEAD_LOSS_TABLE);
    const { positions = 'supervised', chunkBytes = 0 } = options;
    this.positions = positions;
    this.chunkBytes = chunkBytes;
    this.#divergence = termOfPass(terms, 'divergence');
    this.#entropy = termOfPass(terms, 'entropy');
    this.#otherTerms = terms.filter((term) => term !== this.#divergence && term !== this.#entropy);
  }

  /** Whether some term reads the teacher. */
  get readsTeacher(): boolean {
    return this.terms.some(({ teacher }) => teacher);
  }

  /** Temperature T of the divergence; 1 without such a term. */
  get temperature(): number {
    return this.#divergence?.fused.temperature ?? 1;
  }

  /** Selects the rows of a batch that the terms use; the counts of a window are sums of these. */
  select(batch: RowsOfBatch): SelectedRows {
    return selectRows(batch, this.positions);
  }

  /** Enqueues the loss of one micro-batch; nothing is read back. With `prepared`, a graph may record it. */
  compute(input: HeadLossInput): ComputedLoss & { sums: Tensor | null; means: Means } {
    const { hidden, teacher = null, part = null, batch, weights, window } = input;
    const selected = input.selected ?? this.select(batch);
    const counts = countsOf(selected);
    if (selected.rows.length === 0) {
      return { loss: null, sums: null, means: {}, values: [], counts };
    }
    if (this.readsTeacher && counts.regularized > 0 && !teacher && part?.rows.length !== 0) {
      throw new ArgumentError(
        'HeadLoss: a term reads the teacher; pass its hidden states, or a summary of them, as teacher',
      );
    }
    const result = this.#compute({
      ...{ ...input, selected, part },
      hidden: selectedStates(hidden, selected),
      teacher:
        teacher instanceof Tensor && part === null
          ? noGrad(() => selectedStates(teacher, selected))
          : teacher,
      inputs: input.prepared ?? this.prepare(selected, { weights, window }, hidden.device),
    });
    return { ...result, values: this.#valuesOf(result), counts };
  }

  /** Keys of the terms outside the head's pass that have a gradient at these weights. */
  gradientsOf(weights: TermWeights): string[] {
    return this.#otherTerms.map(({ key }) => key).filter((key) => (weights[key] ?? 0) !== 0);
  }

  /** Makes tensors of the inputs of compute() that are on the host. The caller disposes of them. */
  prepare(
    selected: SelectedRows,
    { weights, window }: Pick<HeadLossInput, 'weights'> & { window?: TermCounts | undefined },
    device: string,
  ): LossInputs {
    const counts = countsOf(selected);
    const shares = window ?? counts;
    const weightOf = (term: Term | null): number => (term === null ? 0 : (weights[term.key] ?? 0));
    const scales = Float64Array.of(
      perRow(1, shares.supervised),
      perRow(weightOf(this.#divergence), shares.regularized),
      perRow(weightOf(this.#entropy), shares.regularized),
    );
    const present = this.#otherTerms.filter(({ rows }) => counts[rows] > 0);
    const apart =
      selected.regularized !== null && present.some(({ rows }) => rows === 'regularized');
    return {
      targets: tensor(selected.targets, { device }),
      regularized: selected.regularized && tensor(selected.regularized, { device }),
      regularizedRows: apart ? tensor(selected.regularizedRows, { device }) : null,
      scales: tensor(scales, { device }),
      factors: Object.fromEntries(
        present.map((term) => {
          const factor = (weightOf(term) * counts[term.rows]) / shares[term.rows];
          return [term.key, tensor(Float64Array.of(factor), { shape: [], device })];
        }),
      ),
    };
  }

  #compute(rows: PreparedRows): HeadSums & { means: Means } {
    const { hidden, inputs, part = null } = rows;
    const gradients = this.gradientsOf(rows.weights);
    const { factors } = inputs;
    const teacher = this.#divergence === null ? null : rows.teacher;
    const { loss, sums } =
      part === null
        ? this.#headPass({ ...inputs, hidden, teacher })
        : this.#headPasses({ ...inputs, hidden, teacher }, part);
    // Tensors that terms share are made twice: on the tape for terms with a gradient, off it for those without.
    const [taped, untaped] = [new RowsOfTerms(this.head, rows), new RowsOfTerms(this.head, rows)];
    const means: Record<string, Tensor> = {};
    let total = loss;
    for (const term of this.#otherTerms) {
      const factor = factors[term.key];
      if (factor === undefined) continue;
      const gradient = gradients.includes(term.key);
      const value = gradient ? this.#value(term, taped) : noGrad(() => this.#value(term, untaped));
      const onTape = gradient && hidden.requiresGrad;
      const wide = termValue(term, value, { dtype: 'f64', onTape });
      if (wide === null) continue;
      means[term.key] = wide.detach();
      if (gradient) total = add(total, mul(wide, factor));
    }
    return { loss: total, sums, means };
  }

  /** The values of the terms, as elements of these tensors. */
  #valuesOf({ sums, means }: { sums: Tensor; means: Means }): TermValue[] {
    const values: TermValue[] = [{ key: kTask, tensor: sums, index: kHeadTerm.task, toSum: 1 }];
    if (this.#divergence !== null) {
      const index = kHeadTerm.consistency;
      values.push({ key: this.#divergence.key, tensor: sums, index, toSum: 1 });
    }
    // The pass sums entropies, and the term is their negative.
    if (this.#entropy !== null) {
      const index = kHeadTerm.entropy;
      values.push({ key: this.#entropy.key, tensor: sums, index, toSum: -1 });
    }
    for (const [key, mean] of Object.entries(means)) {
      values.push({ key, tensor: mean, index: 0, toSum: null });
    }
    return values;
  }

  /**
   * Summarises the teacher's hidden states of the selected rows, so that compute() does not need them again.
   * @param teacherHidden (N, C), or (M, C): those rows alone
   * @throws UnsupportedError for a head that is trained or soft-capped
   */
  summarize(teacherHidden: Tensor, selected: SelectedRows): TeacherSummary {
    const { temperature, chunkBytes } = this;
    return noGrad(() =>
      teacherSummary(selectedStates(teacherHidden, selected), {
        head: this.head.weight,
        teacherHead: this.head.teacherWeight ?? null,
        softcap: this.head.softcap ?? 0,
        temperature,
        chunkBytes,
      }),
    );
  }

  /**
   * The teacher's entropy at T of each row of the regularizers, for the adaptive schedule, whose weight depends on its mean over a
   * window divided by ln V.
   * @param teacherHidden (N, C), or (M, C): the selected rows alone
   * @returns (S, 3) f64 whose last column is the entropy, in nats; null where no row is regularized
   */
  teacherEntropyRows(
    teacherHidden: Tensor,
    batch: RowsOfBatch,
    selected: SelectedRows = this.select(batch),
  ): Tensor | null {
    if (selected.regularizedRows.length === 0) return null;
    return noGrad(() =>
      headRows({
        hidden: regularizedOf(selectedStates(teacherHidden, selected), selected),
        head: this.head.teacherWeight ?? this.head.weight,
        softcap: this.head.softcap ?? 0,
        entropyTemperature: this.temperature,
        chunkBytes: this.chunkBytes,
      }),
    );
  }

  /** Bytes of the term of singular values: those kept from its first use on, and those that it takes for so many rows. */
  svdBytes(rows: number): { kept: number; working: number } {
    const options = this.#otherTerms.flatMap(({ fused }) =>
      fused?.pass === 'singularValues' ? [{ k: fused.k, norm: fused.norm }] : [],
    );
    if (options.length === 0) return { kept: 0, working: 0 };
    const { chunkBytes } = this;
    const working = Math.max(
      ...options.map((term) => svdLossBytes(rows, this.head, { ...term, chunkBytes })),
    );
    if (!gramFormAllowed(this.head)) return { kept: 0, working };
    const { kept, making } = HeadGram.bytes(this.head.weight);
    return { kept, working: Math.max(working, making) };
  }

  /**
   * Computes the terms of the head's pass and their gradients on made-up rows, all of them supervised, as a measurement of the memory
   * that the pass takes. Terms outside of it are left out, and so is the gradient of a head that is trained.
   */
  probe(rows: number): void {
    const { weight, teacherWeight = null } = this.head;
    const [vocabulary, channels] = weight.shape as [number, number];
    const terms = this.terms.filter((term) => !this.#otherTerms.includes(term));
    const head = {
      ...this.head,
      weight: weight.detach(),
      teacherWeight: teacherWeight?.detach() ?? null,
    };
    const { positions, chunkBytes } = this;
    const loss = new HeadLoss(head, terms, { positions, chunkBytes });
    const { device, dtype } = weight;
    const states = (seed: number): Tensor => randn([rows, channels], { seed, dtype, device });
    const targets = Int32Array.from({ length: rows }, (_, i) => i % vocabulary);
    scope(() => {
      const hidden = states(1);
      hidden.requiresGrad = true;
      const result = loss.compute({
        hidden,
        teacher: loss.readsTeacher ? noGrad(() => states(2)) : null,
        batch: { targets, cuSeqlens: Int32Array.of(0, rows) },
        weights: Object.fromEntries(terms.map(({ key }) => [key, 1])),
      });
      result.loss?.backward();
    });
  }

  /** Frees the head's Gram matrix. */
  dispose(): void {
    this.#gram?.dispose();
    this.#gram = null;
  }

  /** The terms of the head's pass. */
  #headPass({ hidden, targets, regularized, scales, teacher }: HeadPass): HeadSums {
    return headLosses({
      ...{ hidden, targets, regularized, scales, teacher },
      head: this.head.weight,
      teacherHead: teacher instanceof Tensor ? (this.head.teacherWeight ?? null) : null,
      softcap: this.head.softcap ?? 0,
      temperature: this.temperature,
      entropyTopK: this.#entropy === null ? -1 : this.#entropy.fused.topK,
      chunkBytes: this.chunkBytes,
    });
  }

  /** The terms of the head's pass where the teacher has a part of the rows: one pass for these, and one for the others. */
  #headPasses(all: HeadPass, { rows, others, factor }: TeacherPart): HeadSums {
    const { device } = all.hidden;
    const passOf = (indices: Int32Array): HeadPass => {
      const at = tensor(indices, { device });
      const { hidden, targets, regularized, scales } = all;
      return {
        ...{ hidden: indexSelect(hidden, at), targets: indexSelect(targets, at), scales },
        regularized: regularized && indexSelect(regularized, at),
        teacher: null,
      };
    };
    const row = (...values: number[]): Tensor => tensor(Float64Array.from(values), { device });
    const passes: HeadSums[] = [];
    if (rows.length > 0) {
      const pass = passOf(rows);
      const { loss, sums } = this.#headPass({
        ...pass,
        scales: mul(pass.scales, row(1, factor, 1)),
        teacher: all.teacher,
      });
      passes.push({ loss, sums: mul(sums, row(1, factor, 1, 1)) });
    }
    if (others.length > 0) passes.push(this.#headPass(passOf(others)));
    return passes.reduce((a, b) => ({ loss: add(a.loss, b.loss), sums: add(a.sums, b.sums) }));
  }

  #value(term: Term, rows: RowsOfTerms): Tensor | null {
    if (term.fused?.pass !== 'singularValues') return term.value(rows.contextOf(term));
    if (gramFormAllowed(this.head)) this.#gram ??= new HeadGram(this.head.weight);
    const { k, norm } = term.fused;
    const { chunkBytes } = this;
    return fusedSvdLoss(rows.states(term.rows), this.head, this.#gram, { k, norm, chunkBytes });
  }
}

/** The rows of a micro-batch as the terms outside the head's pass read them, each selection made once. */
class RowsOfTerms {
  readonly #states = new Map<TermRows, Tensor>();
  readonly #contexts = new Map<string, TermContext>();

  constructor(
    private readonly head: Head,
    private readonly micro: PreparedRows,
  ) {}

  /** (S, C) of the student. */
  states(rows: TermRows): Tensor {
    const found = this.#states.get(rows) ?? this.#select(this.micro.hidden, rows);
    this.#states.set(rows, found);
    return found;
  }

  /** The context of a term that is computed by its definition. Terms that read the same rows share their logits. */
  contextOf({ rows, teacher: reads, hiddenStates = [] }: Term): TermContext {
    const { inputs, batch, source = batch, at, hiddenStates: states } = this.micro;
    const teacher = reads && this.micro.teacher instanceof Tensor ? this.micro.teacher : null;
    const key = `${rows} ${reads} ${hiddenStates}`;
    const shared = this.#contexts.get(key);
    if (shared !== undefined) return shared;
    const made = new TermContext({
      states: this.states(rows),
      teacherStates: teacher && noGrad(() => this.#select(teacher, rows)),
      head: this.head,
      targets: this.#select(inputs.targets, rows),
      hiddenStates: hiddenStates.map((layer) => states?.get(layer) as Tensor),
      batch: source,
      at: at ?? { step: 0, totalSteps: 1 },
    });
    this.#contexts.set(key, made);
    return made;
  }

  #select(all: Tensor, rows: TermRows): Tensor {
    const { inputs, selected } = this.micro;
    if (rows === 'regularized') {
      return inputs.regularizedRows === null ? all : indexSelect(all, inputs.regularizedRows);
    }
    const { targets, supervised } = selected;
    if (supervised === targets.length) return all;
    const places = Int32Array.from(targets.keys()).filter((i) => targets[i] !== kIgnoredTarget);
    return indexSelect(all, tensor(places, { device: all.device }));
  }
}

function countsOf({ supervised, regularizedRows }: SelectedRows): TermCounts {
  return { supervised, regularized: regularizedRows.length };
}

function termOfPass<P extends FusedForm['pass']>(
  terms: readonly Term[],
  pass: P,
): (Term & { fused: Pass<P> }) | null {
  return (terms.find(({ fused }) => fused?.pass === pass) ?? null) as
    | (Term & { fused: Pass<P> })
    | null;
}

/** The selected rows of hidden states, which are those of the whole batch or of the selected rows already. */
function selectedStates(hidden: Tensor, { rows, batchRows }: SelectedRows): Tensor {
  const count = hidden.shape[0] as number;
  if (count === rows.length) return hidden;
  if (count === batchRows) return indexSelect(hidden, tensor(rows, { device: hidden.device }));
  throw new ArgumentError(
    `HeadLoss: hidden states must be of all ${batchRows} rows of the batch or of the ${rows.length} ` +
      `selected ones, got ${count}`,
  );
}

/** (M, C) of the selected rows -> (S, C) of the regularizers' */
function regularizedOf(x: Tensor, { regularized, regularizedRows }: SelectedRows): Tensor {
  return regularized === null ? x : indexSelect(x, tensor(regularizedRows, { device: x.device }));
}

/** Bytes of the tiles of logits where the Gram form is not allowed, unless a limit is given. */
const kSvdTileBytes = 16 * 2 ** 20;
/** Copies of a tile, those of its gradient included, over what a tile is counted as: logits in f32 and in f64. */
const kTileCopies = 2.5;
const kF64Bytes = 8;

/**
 * Whether the SVD term may use G = W^T W: the logits must be linear in the hidden states, and the head must not be trained
 * (its G would change with every step, and its gradient is wanted).
 */
export function gramFormAllowed(head: Head): boolean {
  return !head.weight.requiresGrad && !((head.softcap ?? 0) > 0);
}

/** The Gram matrix G = W^T W of a frozen head, (C, C) f64, made at the first use and kept until it is disposed of. */
export class HeadGram {
  #gram: Tensor | null = null;

  constructor(private readonly head: Tensor) {}

  /** W^T W (C,C) f64, made at the first call. */
  get(): Tensor {
    this.#gram ??= unscoped(() => noGrad(() => gram(this.head)));
    return this.#gram;
  }

  /** Bytes that it takes from its first use on, and bytes that making it takes once, those of a head's decoded values. */
  static bytes({ shape, dtype, encoding }: Tensor): { kept: number; making: number } {
    const [vocabulary, channels] = shape as [number, number];
    const making = encoding === null ? 0 : DTYPE_BYTES[dtype] * vocabulary * channels;
    return { kept: kF64Bytes * channels ** 2, making };
  }

  /** Frees its tensors. */
  dispose(): void {
    this.#gram?.dispose();
    this.#gram = null;
  }
}

/** Options of {@link fusedSvdLoss}. */
export interface SvdTermOptions {
  /** Number of singular values that are summed. Default 10. */
  k?: number;
  /** The denominator. Default `frobenius`. */
  norm?: 'frobenius' | 'nuclear';
  /** Limit, in bytes, on the tiles of logits where the Gram form is not allowed; 0 (the default) for 16 MiB. */
  chunkBytes?: number;
}

/**
 * L_SVDR = -(sum of the k largest singular values of the rows' logits) / norm.
 * @param hidden (M, C)
 * @returns () f64
 */
export function fusedSvdLoss(
  hidden: Tensor,
  head: Head,
  headGram: HeadGram | null,
  options: SvdTermOptions = {},
): Tensor {
  checkKeys('fusedSvdLoss', options, 'k norm chunkBytes');
  const { k = 10, norm = 'frobenius', chunkBytes = 0 } = options;
  if (headGram && gramFormAllowed(head)) return svdRatioGram(hidden, headGram.get(), { k, norm });
  return svdRatio(hidden, head.weight, { k, norm, softcap: head.softcap ?? 0, chunkBytes });
}

/** f64 matrices of the order of a Gram matrix that exist at one time while all of its eigenvectors are computed, or few of them. */
const kEigenMatrices = { all: 6, few: 1.5 };
/**
 * Columns of a block of the iteration for few eigenvectors, from the number that is wanted, and blocks without which all are computed: as
 * native/kernels/cpu/linalg/krylov.h and head/svd_ratio.cc have them.
 */
const krylovBlock = (k: number): number => 8 * Math.ceil((k + 6) / 8);
const kLeastBlocks = 8;

/**
 * Bytes that {@link fusedSvdLoss} takes for M rows beside the head's Gram matrix. With it: H and H G in f64 where all pairs are wanted or M
 * is small, else H in f64, and in f32 the rest that the pairs leave of it, that times G, and G. By tiles: the sum of dH, and a tile with its
 * copies in f64.
 */
export function svdLossBytes(
  rows: number,
  head: Head,
  { k = 10, norm = 'frobenius', chunkBytes = 0 }: SvdTermOptions = {},
): number {
  const [vocabulary, channels] = head.weight.shape as [number, number];
  const isGram = gramFormAllowed(head);
  const order = Math.min(rows, isGram ? channels : vocabulary);
  const isDense = norm === 'nuclear' || kLeastBlocks * krylovBlock(k) > order;
  const pairs = kEigenMatrices[isDense ? 'all' : 'few'] * kF64Bytes * order ** 2;
  const states = rows * channels;
  if (isGram) {
    if (isDense) return 3 * kF64Bytes * states + pairs;
    return (kF64Bytes + 2 * DTYPE_BYTES.f32) * states + DTYPE_BYTES.f32 * channels ** 2;
  }
  const logitBytes = DTYPE_BYTES.f32 + kF64Bytes;
  const tile = Math.min(Math.max(chunkBytes, kSvdTileBytes), logitBytes * rows * vocabulary);
  return (DTYPE_BYTES.f32 + kF64Bytes) * states + pairs + kTileCopies * tile;
}
