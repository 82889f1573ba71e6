/** The values of a loss's terms over a gradient accumulation window, collected from its micro-batches and read once, at the end. */
import { type Tensor, unscoped } from '../tensor.ts';
import type { Term, TermRows } from './term.ts';

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
export interface MicroBatchLoss {
  /** The micro-batch's share of the step's loss, a scalar on the tape; null where it has no row of any kind. */
  readonly loss: Tensor | null;
  readonly values: readonly TermValue[];
  readonly counts: TermCounts;
}

/** Mean values of the terms over a window; null: undefined in every micro-batch. */
export type TermValues = { task: number } & Record<string, number | null>;

/** The key of the task's own loss. */
export const kTask = 'task';

/** Collector of the values of a loss's terms over the micro-batches of a window; {@link TermSums.read} gives their means. */
export class TermSums {
  readonly #rows = new Map<string, TermRows>([[kTask, 'supervised']]);
  #microBatches: MicroBatchLoss[] = [];

  constructor(terms: readonly Pick<Term, 'key' | 'rows'>[]) {
    for (const { key, rows } of terms) this.#rows.set(key, rows);
  }

  /** Adds a micro-batch. */
  add({ values, counts }: MicroBatchLoss): void {
    const kept = new Map<Tensor, Tensor>();
    const keep = (tensor: Tensor): Tensor => {
      const found = kept.get(tensor) ?? unscoped(() => tensor.detach());
      kept.set(tensor, found);
      return found;
    };
    const held = values.map((value) => ({ ...value, tensor: keep(value.tensor) }));
    this.#microBatches.push({ loss: null, values: held, counts });
  }

  /** Waits for the values, and frees what was kept. */
  async read(): Promise<TermValues> {
    const totals = { supervised: 0, regularized: 0 };
    for (const { counts } of this.#microBatches) {
      totals.supervised += counts.supervised;
      totals.regularized += counts.regularized;
    }
    // Sums and weighted means are collected separately: a sum is divided by its rows once, at the end.
    const sums = new Map<string, number>();
    const means = new Map<string, number>();
    for (const { values, counts } of this.#microBatches) {
      const numbers = new Map<Tensor, ArrayLike<number>>();
      for (const { key, tensor, index, toSum } of values) {
        const data = numbers.get(tensor) ?? ((await tensor.data()) as Float64Array);
        numbers.set(tensor, data);
        const number = data[index] as number;
        const rows = this.#rows.get(key) as TermRows;
        if (toSum !== null) sums.set(key, (sums.get(key) ?? 0) + number);
        else means.set(key, (means.get(key) ?? 0) + number * perRow(counts[rows], totals[rows]));
      }
    }
    const signs = this.#signs();
    const result: Record<string, number | null> = {};
    for (const [key, rows] of this.#rows) {
      const sum = sums.get(key);
      const mean = means.get(key) ?? null;
      result[key] = sum === undefined ? mean : sum * perRow(signs.get(key) ?? 1, totals[rows]);
    }
    this.dispose();
    return { ...result, task: result[kTask] ?? 0 };
  }

  /** Frees what was kept without reading it. */
  dispose(): void {
    for (const { values } of this.#microBatches) for (const { tensor } of values) tensor.dispose();
    this.#microBatches = [];
  }

  #signs(): Map<string, number> {
    const signs = new Map<string, number>();
    for (const { values } of this.#microBatches) {
      for (const { key, toSum } of values) if (toSum !== null) signs.set(key, toSum);
    }
    return signs;
  }
}

/** The factor weight / rows; 0 without rows, since a window without rows of a kind has no such term. */
export function perRow(weight: number, rows: number): number {
  return rows > 0 ? weight / rows : 0;
}
