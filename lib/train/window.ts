/**
 * The accumulation window: the micro-batches of one optimiser step. All of them are read and counted before the first gradient
 * is computed, because each mean is weighted by its share of the whole window's rows, so that 1x8 and 8x1 give the same step. A
 * window never extends beyond the end of an epoch, so the last one of an epoch may be shorter.
 */
import type { BatchSource } from '../data/batch_source.ts';
import { ArgumentError } from '../errors.ts';
import type { MicroBatch, RowCounts } from '../tasks/task.ts';

/** The position of the next micro-batch. */
export interface Position {
  readonly epoch: number;
  readonly microBatch: number;
}

/** The accumulation window of a step. */
export interface Window<B = unknown> {
  readonly batches: readonly MicroBatch<B>[];
  /** The contiguous micro-batches that this process computes; left out: all. */
  readonly part?: readonly MicroBatch<B>[];
  readonly totals: RowCounts;
  /** The position at which the next window begins. */
  readonly after: Position;
  /** Epochs completed at the end of this window, as a fraction. */
  readonly epoch: number;
}

interface WindowOptions<B> {
  /** The number of micro-batches in a window. */
  readonly accumulation: number;
  /** Selects and counts the rows of a batch. */
  readonly select: (data: B) => Omit<MicroBatch<B>, 'index'>;
}

/** Reads windows from a data source, starting at a given position. */
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

  /**
   * Reads the next window.
   * @throws ArgumentError when a whole window has no supervised row, because its loss would be 0/0
   */
  async next(): Promise<Window<B>> {
    const batches: MicroBatch<B>[] = [];
    let count = await this.source.batchCount(this.position.epoch);
    if (this.position.microBatch >= count) {
      await this.close();
      this.position = { epoch: this.position.epoch + 1, microBatch: 0 };
      count = await this.source.batchCount(this.position.epoch);
    }
    if (count === 0) {
      throw new ArgumentError('the training data has no example; give it at least one');
    }
    const size = Math.min(this.options.accumulation, count - this.position.microBatch);
    for (let index = 0; index < size; index++) {
      batches.push({ ...this.options.select(await this.read()), index });
    }
    const { epoch, microBatch } = this.position;
    this.position = { epoch, microBatch: microBatch + size };
    const totals = sumCounts(batches.map(({ counts }) => counts));
    if (totals.supervised === 0) {
      throw new ArgumentError(
        `micro-batches ${microBatch} to ${microBatch + size - 1} of epoch ${epoch} hold no supervised token; ` +
          'raise maxLength above the length of the prompts',
      );
    }
    return { batches, totals, after: this.position, epoch: epoch + (microBatch + size) / count };
  }

  /** Closes the source's files. */
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
        `the data source ended before its batchCount in epoch ${this.position.epoch}; let batchCount return the true number`,
      );
    }
    return next.value;
  }
}

/**
 * The number of optimiser steps of a run: `maxSteps`, or the number of windows in the given epochs, where a partial epoch is
 * rounded up to whole windows.
 */
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
