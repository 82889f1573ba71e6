/**
 * The micro-batches of one optimiser step. They are all read and counted BEFORE the first gradient is made, because
 * each mean counts with its share of the whole window's rows: 1x8 and 8x1 then give the same step.
 * A window never reaches over the end of an epoch; the last one of an epoch may be short.
 */
import type { BatchSource } from '../data/batch_source.ts';
import { ArgumentError } from '../errors.ts';
import type { MicroBatch, RowCounts } from '../tasks/task.ts';

/** Where the next micro-batch is. */
export interface Position {
  readonly epoch: number;
  readonly microBatch: number;
}

/** A micro-batch of a window, with what was computed for it before its turn came. */
export interface WindowBatch<B = unknown> extends MicroBatch<B> {
  /** Its place in the window, from 0. */
  readonly index: number;
  /** The teacher's part, where it was needed early; whoever takes it out gives it back to the loss. */
  teacher: unknown;
}

/** The micro-batches of a step. */
export interface Window<B = unknown> {
  readonly batches: readonly WindowBatch<B>[];
  readonly totals: RowCounts;
  /** Where the next window begins. */
  readonly after: Position;
  /** Epochs done when this window is done, fractional. */
  readonly epoch: number;
}

interface WindowOptions<B> {
  /** Micro-batches of a window. */
  readonly accumulation: number;
  /** Chooses and counts the rows of a batch. */
  readonly select: (batch: B) => MicroBatch<B>;
}

/** Reads windows from a source, from a position on. */
export class WindowReader<B = unknown> {
  private iterator: AsyncIterator<B> | Iterator<B> | null = null;
  private position: Position;

  constructor(
    private readonly source: BatchSource<B>,
    private readonly options: WindowOptions<B>,
    start: Position,
  ) {
    this.position = start;
  }

  /** @throws ArgumentError when a whole window has no supervised row: its loss would be 0/0. */
  async next(): Promise<Window<B>> {
    const batches: WindowBatch<B>[] = [];
    let count = await this.source.batchCount(this.position.epoch);
    if (this.position.microBatch >= count) {
      await this.close();
      this.position = { epoch: this.position.epoch + 1, microBatch: 0 };
      count = await this.source.batchCount(this.position.epoch);
    }
    if (count === 0)
      throw new ArgumentError('the training data has no example with a supervised token');
    const size = Math.min(this.options.accumulation, count - this.position.microBatch);
    for (let index = 0; index < size; index++) {
      const chosen = this.options.select(await this.read());
      batches.push({ ...chosen, index, teacher: null });
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
  source: Pick<BatchSource<unknown>, 'batchCount'>,
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
  return {
    tokens: sum('tokens'),
    supervised: sum('supervised'),
    regularized: sum('regularized'),
  };
}
