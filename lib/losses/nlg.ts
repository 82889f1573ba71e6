// BA-LoRA's loss for causal language models (arXiv 2408.04556) on one micro-batch of an accumulation window:
//   L = task + l1 CR - l2 H + l3 SVDR
// Every mean counts with the micro-batch's share of the WINDOW's rows: the task with supervised rows, the regularizers with
// selected rows. Task, CR and DR of 1x8 and 8x1 then agree exactly; SVDR belongs to the micro-batch's own matrix.
import { ArgumentError } from '../errors.ts';
import {
  add,
  headLosses,
  headLossesCached,
  headRows,
  indexSelect,
  mul,
  type TeacherSummary,
  teacherSummary,
} from '../ops/index.ts';
import { noGrad, type Tensor, tensor, unscoped } from '../tensor.ts';
import { fusedSvdLoss, gramFormAllowed, type Head, HeadGram } from './fused.ts';
import { type Positions, type RowsOfBatch, type SelectedRows, selectRows } from './positions.ts';

export type { SelectedRows, TeacherSummary };

/** Options of {@link BaLoraLoss}. */
export interface BaLoraOptions {
  /** Which regularizers are on; an off term is neither computed nor reported. Default all. */
  terms?: { consistency?: boolean; diversity?: boolean; svd?: boolean };
  /** T of the consistency term. Default 2. */
  temperature?: number;
  /** K of the entropy, 0: whole vocabulary. Default 20. */
  entropyTopK?: number;
  /** k of the singular values. Default 10. */
  svdTopK?: number;
  svdNorm?: 'frobenius' | 'nuclear';
  /** Rows of the regularizers. Default supervised. */
  positions?: Positions;
  /** Bound on the scratch for logits; 0: the default of the device. */
  chunkBytes?: number;
}

/** Weights l1, l2, l3 at this step; 0 computes a term's value without its gradient. */
export interface TermWeights {
  consistency: number;
  diversity: number;
  svd: number;
}

/** Rows of the whole accumulation window, all its micro-batches together. */
export interface WindowCounts {
  supervised: number;
  selected: number;
}

/** What {@link BaLoraLoss.compute} needs. */
export interface MicroBatch {
  /** (N, C) after the final norm, on the tape; or (M, C), the rows of {@link BaLoraLoss.select} alone. */
  hidden: Tensor;
  /** (N, C) or (M, C) of the teacher, without gradient; needed while consistency is on. */
  teacherHidden?: Tensor | null;
  /** The teacher's selected rows summed up, instead of its hidden states; see {@link BaLoraLoss.summarize}. */
  teacher?: TeacherSummary | null;
  batch: RowsOfBatch;
  weights: TermWeights;
  /** Default: this micro-batch is the whole window. */
  window?: WindowCounts;
}

/** What a micro-batch's loss takes from the host: what changes from step to step lies on the device. */
export interface LossInputs {
  readonly targets: Tensor; // (M) i32
  /** null: all rows are regularized. */
  readonly regularized: Tensor | null; // (M) u8
  /** Places of the regularizers' rows, where they are not all; for the SVD term. */
  readonly regularizedRows: Tensor | null; // (S) i32
  /** Factors of the sums of CE, T^2 KL and entropy. */
  readonly scales: Tensor; // (3) f64
  /** Factor of the SVD term; null where it is off or no row is selected. */
  readonly svdScale: Tensor | null; // () f64
}

/** A micro-batch as {@link BaLoraLoss.computePrepared} takes it. */
export interface PreparedMicroBatch {
  /** (M, C) of the selected rows, on the tape. */
  readonly hidden: Tensor;
  readonly teacher: Tensor | null; // (M, C)
  readonly summary: TeacherSummary | null;
  readonly inputs: LossInputs;
  /** false computes the SVD term's value alone. */
  readonly svdGradient: boolean;
}

/** What {@link BaLoraLoss.compute} gives. */
export interface MicroBatchLoss {
  /** Share of the step's loss, () f64, on the tape; null where the micro-batch has no row of any kind. */
  loss: Tensor | null;
  /** (4) f64: sums over rows of CE, T^2 KL and entropy; null with loss. */
  sums: Tensor | null;
  /** () f64, the micro-batch's own value; null where it is off or no row is selected. */
  svd: Tensor | null;
  /** Rows of the task loss and of the regularizers in this micro-batch. */
  supervised: number;
  selected: number;
}

/** Raw values of the terms over a window. null: switched off. */
export interface TermValues {
  task: number;
  consistency: number | null;
  diversity: number | null;
  svd: number | null;
}

/** The whole loss of a micro-batch in its fused form. */
export class BaLoraLoss {
  readonly options: Required<Omit<BaLoraOptions, 'terms'>>;
  readonly terms: { consistency: boolean; diversity: boolean; svd: boolean };
  #gram: HeadGram | null = null;

  constructor(
    readonly head: Head,
    options: BaLoraOptions = {},
  ) {
    const { terms = {}, ...rest } = options;
    this.terms = { consistency: true, diversity: true, svd: true, ...terms };
    this.options = {
      temperature: 2,
      entropyTopK: 20,
      svdTopK: 10,
      svdNorm: 'frobenius',
      positions: 'supervised',
      chunkBytes: 0,
      ...rest,
    };
    if (!(this.options.entropyTopK >= 0)) {
      throw new ArgumentError(`entropyTopK must be >= 0, got ${this.options.entropyTopK}`);
    }
  }

  /** Rows that each kind of term uses; the counts of a window are sums of these. */
  select(batch: RowsOfBatch): SelectedRows {
    return selectRows(batch, this.options.positions);
  }

  /** Enqueues the loss of one micro-batch; nothing is read back. */
  compute(micro: MicroBatch): MicroBatchLoss {
    const { hidden, teacherHidden = null, teacher: summary = null, batch, weights, window } = micro;
    const selected = this.select(batch);
    const counts = countsOf(selected);
    if (selected.rows.length === 0) return { loss: null, sums: null, svd: null, ...counts };
    if (this.terms.consistency && counts.selected > 0 && !teacherHidden && !summary) {
      throw new ArgumentError('BaLoraLoss: the consistency term needs teacherHidden');
    }
    const result = this.computePrepared({
      hidden: pick(hidden, selected),
      teacher: teacherHidden && noGrad(() => pick(teacherHidden, selected)),
      summary,
      inputs: this.prepare(selected, { weights, window }, hidden.device),
      svdGradient: weights.svd !== 0,
    });
    return { ...result, ...counts };
  }

  /** What compute() takes from the host; the caller's to dispose. */
  prepare(
    selected: SelectedRows,
    { weights, window }: Pick<MicroBatch, 'weights' | 'window'>,
    device: string,
  ): LossInputs {
    const counts = countsOf(selected);
    const shares = window ?? counts;
    const scales = Float64Array.of(
      perRow(1, shares.supervised),
      perRow(weights.consistency, shares.selected),
      perRow(weights.diversity, shares.selected),
    );
    const some = this.terms.svd && selected.regularized !== null && counts.selected > 0;
    return {
      targets: tensor(selected.targets, { device }),
      regularized: selected.regularized && tensor(selected.regularized, { device }),
      regularizedRows: some ? tensor(selected.regularizedRows, { device }) : null,
      scales: tensor(scales, { device }),
      svdScale:
        this.terms.svd && counts.selected > 0
          ? tensor(Float64Array.of((weights.svd * counts.selected) / shares.selected), {
              shape: [],
              device,
            })
          : null,
    };
  }

  /** compute() on tensors alone, which a graph may record. */
  computePrepared(micro: PreparedMicroBatch): { loss: Tensor; sums: Tensor; svd: Tensor | null } {
    const { hidden, summary, inputs, svdGradient } = micro;
    const { targets, regularized, scales, svdScale } = inputs;
    const teacher = this.terms.consistency ? micro.teacher : null;
    const common = {
      ...{ hidden, targets, regularized, scales },
      head: this.head.weight,
      softcap: this.head.softcap ?? 0,
      temperature: this.options.temperature,
      entropyTopK: this.terms.diversity ? this.options.entropyTopK : -1,
      chunkBytes: this.options.chunkBytes,
    };
    const teacherHead = teacher ? (this.head.teacherWeight ?? null) : null;
    const { loss, sums } =
      this.terms.consistency && summary
        ? headLossesCached({ ...common, summary })
        : headLosses({ ...common, teacher, teacherHead });
    const svd = svdScale && this.#svd(hidden, inputs.regularizedRows, svdGradient);
    if (!svd || !svdScale || !svdGradient) return { loss, sums, svd };
    return { loss: add(loss, mul(svd, svdScale)), sums, svd: svd.detach() };
  }

  /**
   * The teacher's part in compute(), for keeping: of the rows of select(), in their order.
   * @param teacherHidden (N, C), or (M, C): those rows alone
   * @throws UnsupportedError for a head that is trained or soft-capped
   */
  summarize(teacherHidden: Tensor, selected: SelectedRows): TeacherSummary {
    const { temperature, chunkBytes } = this.options;
    return noGrad(() =>
      teacherSummary(pick(teacherHidden, selected), {
        head: this.head.weight,
        teacherHead: this.head.teacherWeight ?? null,
        softcap: this.head.softcap ?? 0,
        temperature,
        chunkBytes,
      }),
    );
  }

  /**
   * Sum over the selected rows of the teacher's entropy at T, for the adaptive schedule (its mean / ln V gives l1). Exact
   * over a window when the caller adds up its micro-batches before it computes their losses.
   * @param teacherHidden (N, C), or (M, C): the rows of select() alone
   * @returns (S, 3) f64 whose last column is the entropy of each selected row, or null for none
   */
  teacherEntropyRows(teacherHidden: Tensor, batch: RowsOfBatch): Tensor | null {
    const selected = this.select(batch);
    if (selected.regularizedRows.length === 0) return null;
    return noGrad(() =>
      headRows({
        hidden: regularizedOf(pick(teacherHidden, selected), selected),
        head: this.head.teacherWeight ?? this.head.weight,
        softcap: this.head.softcap ?? 0,
        entropyTemperature: this.options.temperature,
        chunkBytes: this.options.chunkBytes,
      }),
    );
  }

  /** Frees the head's Gram matrix. */
  dispose(): void {
    this.#gram?.dispose();
    this.#gram = null;
  }

  #svd(rows: Tensor, regularizedRows: Tensor | null, gradient: boolean): Tensor {
    const own = regularizedRows === null ? rows : indexSelect(rows, regularizedRows);
    if (gramFormAllowed(this.head)) this.#gram ??= new HeadGram(this.head.weight);
    const { svdTopK: k, svdNorm: norm, chunkBytes } = this.options;
    const value = (): Tensor => fusedSvdLoss(own, this.head, this.#gram, { k, norm, chunkBytes });
    return gradient ? value() : noGrad(value);
  }
}

/** The terms' raw values over a window, from its micro-batches. The values are read once, at the end. */
export class WindowTerms {
  #parts: { sums: Tensor; svd: Tensor | null; selected: number }[] = [];
  #supervised = 0;
  #selected = 0;

  constructor(private readonly terms: BaLoraLoss['terms']) {}

  /** Counts a micro-batch in. */
  add(result: MicroBatchLoss): void {
    this.#supervised += result.supervised;
    this.#selected += result.selected;
    if (!result.sums) return;
    unscoped(() => {
      this.#parts.push({
        sums: (result.sums as Tensor).detach(),
        svd: result.svd?.detach() ?? null,
        selected: result.selected,
      });
    });
  }

  /** Waits for the values, and frees what was kept. */
  async read(): Promise<TermValues> {
    const totals = [0, 0, 0];
    let svd = 0;
    for (const part of this.#parts) {
      const sums = (await part.sums.data()) as Float64Array;
      for (let i = 0; i < 3; i++) totals[i] = (totals[i] as number) + (sums[i] as number);
      if (part.svd) svd += (await part.svd.item()) * perRow(part.selected, this.#selected);
      part.sums.dispose();
      part.svd?.dispose();
    }
    this.#parts = [];
    const [task, consistency, entropy] = totals as [number, number, number];
    return {
      task: task * perRow(1, this.#supervised),
      consistency: this.terms.consistency ? consistency * perRow(1, this.#selected) : null,
      diversity: this.terms.diversity ? -entropy * perRow(1, this.#selected) : null,
      svd: this.terms.svd ? svd : null,
    };
  }
}

function countsOf({ supervised, regularizedRows }: SelectedRows): WindowCounts {
  return { supervised, selected: regularizedRows.length };
}

/** The selected rows of hidden states that are those of the whole batch, or the selected ones already. */
function pick(hidden: Tensor, { rows, batchRows }: SelectedRows): Tensor {
  const count = hidden.shape[0] as number;
  if (count === rows.length) return hidden;
  if (count === batchRows) return indexSelect(hidden, tensor(rows, { device: hidden.device }));
  throw new ArgumentError(
    `BaLoraLoss: hidden states must be of all ${batchRows} rows of the batch or of the ${rows.length} ` +
      `selected ones, got ${count}`,
  );
}

/** (M, C) of the selected rows -> (S, C) of the regularizers' */
function regularizedOf(x: Tensor, { regularized, regularizedRows }: SelectedRows): Tensor {
  return regularized === null ? x : indexSelect(x, tensor(regularizedRows, { device: x.device }));
}

/** A window without rows of a kind has no such term. */
function perRow(weight: number, rows: number): number {
  return rows > 0 ? weight / rows : 0;
}
