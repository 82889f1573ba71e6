/**
 * The micro-batches of one optimiser step. They are all read and counted BEFORE the first gradient is made, because
 * each mean counts with its share of the whole window's rows: 1x8 and 8x1 then give the same step.
 * A window never reaches over the end of an epoch; the last one of an epoch may be short.
 */

import { ArgumentError } from '../errors.ts';
import { type Positions, selectRows } from '../losses/positions.ts';
import type { AnyBatch, Batch, BatchSource } from './types.ts';

/** Where the next micro-batch is. */
export interface Position {
  readonly epoch: number;
  readonly microBatch: number;
}

export interface RowCounts {
  /** Real rows, padding not counted. */
  readonly tokens: number;
  /** Rows of the task loss. */
  readonly supervised: number;
  /** Rows of the regularizers. */
  readonly selected: number;
}

export interface Window<B = Batch> {
  readonly batches: readonly { readonly batch: B; readonly counts: RowCounts }[];
  readonly totals: RowCounts;
  /** Where the next window begins. */
  readonly after: Position;
  /** Epochs done when this window is done, fractional. */
  readonly epoch: number;
}

/** Rows of a micro-batch, by kind. Of labelled sequences every one is a row of the losses. */
export function countRows(batch: AnyBatch, positions: Positions): RowCounts {
  if (!('targets' in batch)) {
    const examples = batch.indices.length;
    return { tokens: batch.inputIds.length, supervised: examples, selected: examples };
  }
  const tokens = batch.lengths
    ? batch.lengths.reduce((sum, length) => sum + length, 0)
    : batch.inputIds.length;
  const { supervised, regularizedRows } = selectRows(batch, positions);
  return { tokens, supervised, selected: regularizedRows.length };
}

/** Reads windows from a source, from a position on. */
export class WindowReader<B extends AnyBatch = Batch> {
  private iterator: AsyncIterator<B> | Iterator<B> | null = null;
  private position: Position;

  constructor(
    private readonly source: BatchSource<B>,
    private readonly options: { accumulation: number; positions: Positions },
    start: Position,
  ) {
    this.position = start;
  }

  /** @throws ArgumentError when a whole window has no supervised row: its loss would be 0/0. */
  async next(): Promise<Window<B>> {
    const batches: { batch: B; counts: RowCounts }[] = [];
    let count = await this.source.batchCount(this.position.epoch);
    if (this.position.microBatch >= count) {
      await this.close();
      this.position = { epoch: this.position.epoch + 1, microBatch: 0 };
      count = await this.source.batchCount(this.position.epoch);
    }
    if (count === 0)
      throw new ArgumentError('the training data has no example with a supervised token');
    const size = Math.min(this.options.accumulation, count - this.position.microBatch);
    for (let i = 0; i < size; i++) {
      const batch = await this.read();
      batches.push({ batch, counts: countRows(batch, this.options.positions) });
    }
    const { epoch, microBatch } = this.position;
    this.position = { epoch, microBatch: microBatch + size };
    const totals = sumCounts(batches.map(({ counts }) => counts));
    if (totals.supervised === 0) {
      throw new ArgumentError(
        `micro-batches ${microBatch} to ${microBatch + size - 1} of epoch ${epoch} hold no supervised token; ` +
          'is maxLength shorter than the prompts?',
      );
    }
    return { batches, totals, after: this.position, epoch: epoch + (microBatch + size) / count };
  }

  /** Lets the source close its files. */
  async close(): Promise<void> {
    await this.iterator?.return?.();
    this.iterator = null;
  }

  private async read(): Promise<B> {
    if (this.iterator === null) {
      const { epoch, microBatch } = this.position;
      const batches = this.source.batches(epoch, microBatch);
      this.iterator =
        Symbol.asyncIterator in batches
          ? batches[Symbol.asyncIterator]()
          : batches[Symbol.iterator]();
    }
    const next = await this.iterator.next();
    if (next.done) {
      throw new ArgumentError(
        `the data source ended before its batchCount in epoch ${this.position.epoch}`,
      );
    }
    return next.value;
  }
}

/** Optimiser steps of a run: `maxSteps`, or the windows of that many epochs (a part of an epoch rounds up). */
export async function countSteps(
  source: BatchSource<AnyBatch>,
  options: { accumulation: number; numTrainEpochs: number; maxSteps: number | null },
): Promise<number> {
  if (options.maxSteps !== null) return options.maxSteps;
  let steps = 0;
  for (let epoch = 0; epoch < options.numTrainEpochs; epoch++) {
    const share = Math.min(1, options.numTrainEpochs - epoch);
    steps += share * Math.ceil((await source.batchCount(epoch)) / options.accumulation);
  }
  return Math.ceil(steps - 1e-9);
}

function sumCounts(counts: readonly RowCounts[]): RowCounts {
  const sum = (key: keyof RowCounts): number => counts.reduce((total, row) => total + row[key], 0);
  return { tokens: sum('tokens'), supervised: sum('supervised'), selected: sum('selected') };
}
