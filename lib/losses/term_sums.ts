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
    // Sums and weighted means are collected separately: a sum is divided by its rows once, at the end.
    const sums = new Map<string, number>();
    const means = new Map<string, number>();
    for (const { values, counts } of this.#microBatches) {
      const numbers = new Map<Tensor, ArrayLike<number>>();
      for (const { key, tensor, index, toSum } of values) {
        const data = numbers.get(tensor) ?? ((await tensor.data()) as Float64Array);
        numbers.set(tensor, data);
        const number = Number(data[index]);
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
