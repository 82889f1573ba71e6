import { describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import type { Positions } from '../../lib/data/select_rows.ts';
import { causalLm } from '../../lib/tasks/causal_lm.ts';
import type { Batch, BatchSource } from '../../lib/train/types.ts';
import { countSteps, WindowReader } from '../../lib/train/window.ts';
import { accumulator } from '../support/accumulate.ts';
import { TinyModel, tinyBatches } from '../support/tiny_model.ts';

const countsOf = (batch: Batch, positions: Positions) =>
  causalLm.select(batch, { positions }).counts;
const select = (batch: Batch) => causalLm.select(batch, { positions: 'supervised' });

/** Micro-batch i of epoch e, with e + 1 prompt rows, i + 1 supervised rows and one last row. */
function batchOf(epoch: number, index: number): Batch {
  const targets = Int32Array.from([
    ...Array<number>(epoch + 1).fill(-100),
    ...Array<number>(index + 1).fill(7),
    -100,
  ]);
  return {
    inputIds: new Int32Array(targets.length),
    positions: Int32Array.from(targets, (_, i) => i),
    cuSeqlens: Int32Array.of(0, targets.length),
    targets,
  };
}

function source(counts: number[]): BatchSource & { starts: number[] } {
  const starts: number[] = [];
  return {
    starts,
    fingerprint: 'x',
    batchCount: (epoch) => counts[epoch % counts.length] as number,
    *batches(epoch, start) {
      starts.push(start);
      for (let i = start; i < (counts[epoch % counts.length] as number); i++)
        yield batchOf(epoch, i);
    },
  };
}

describe('a part of a window', () => {
  it('has its share of the window: losses and gradients of the parts add up to those of the whole', async () => {
    const tuned = await AdapterModel.create(new TinyModel(), { r: 2, initLoraWeights: false });
    const objective = accumulator(tuned, { consistencyWeight: 0.3, diversityWeight: 0.1 });
    const chosen = tinyBatches({ count: 3 }).map((batch, index) => ({ ...select(batch), index }));
    const sum = (key: 'tokens' | 'supervised' | 'regularized') =>
      chosen.reduce((total, { counts }) => total + counts[key], 0);
    const window = {
      ...{ batches: chosen, after: { epoch: 0, microBatch: 3 }, epoch: 1 },
      totals: {
        tokens: sum('tokens'),
        supervised: sum('supervised'),
        regularized: sum('regularized'),
      },
    };
    const gradients = () =>
      tuned.parameters().map(({ tensor }) => Array.from(tensor.grad?.dataSync() as Float32Array));
    const whole = await objective.accumulate(window);
    const expected = gradients();
    tuned.zeroGradients();
    const first = await objective.accumulate({ ...window, part: chosen.slice(0, 1) });
    const second = await objective.accumulate({ ...window, part: chosen.slice(1) });
    expect(first.loss + second.loss).toBeCloseTo(whole.loss, 12);
    expect(gradients()).toEqual(expected);
    objective.dispose();
  });
});

describe('windows', () => {
  it('are counted before the step, and stop at the end of an epoch', async () => {
    const reader = new WindowReader(
      source([5]),
      { accumulation: 2, select },
      { epoch: 0, microBatch: 0 },
    );
    const sizes: number[] = [];
    const epochs: number[] = [];
    const supervised: number[] = [];
    for (let i = 0; i < 4; i++) {
      const window = await reader.next();
      sizes.push(window.batches.length);
      epochs.push(window.epoch);
      supervised.push(window.totals.supervised);
    }
    expect(sizes).toEqual([2, 2, 1, 2]);
    expect(supervised).toEqual([3, 7, 5, 3]);
    expect(epochs).toEqual([0.4, 0.8, 1, 1.4]);
  });

  it('continue from a position as without an interruption', async () => {
    const options = { accumulation: 2, select };
    const whole = new WindowReader(source([5, 3]), options, { epoch: 0, microBatch: 0 });
    for (let i = 0; i < 6; i++) {
      const resumed = new WindowReader(
        source([5, 3]),
        options,
        i === 0 ? { epoch: 0, microBatch: 0 } : await last(options, i),
      );
      expect(await resumed.next()).toEqual(await whole.next());
    }
  });

  it('are refused without supervised rows, with empty data, and where the source ends early', async () => {
    const none: BatchSource = {
      fingerprint: '',
      batchCount: () => 1,
      batches: () => [{ ...batchOf(0, 0), targets: new Int32Array(3).fill(-100) }],
    };
    const start = { epoch: 0, microBatch: 0 };
    const options = { accumulation: 1, select };
    await expect(new WindowReader(none, options, start).next()).rejects.toThrow(
      /no supervised token/,
    );
    await expect(new WindowReader(source([0]), options, start).next()).rejects.toThrow(
      /no example/,
    );
    const short: BatchSource = {
      fingerprint: '',
      batchCount: () => 2,
      batches: () => [batchOf(0, 0)],
    };
    await expect(
      new WindowReader(short, { ...options, accumulation: 2 }, start).next(),
    ).rejects.toThrow(/ended before/);
  });
});

async function last(options: { accumulation: number; select: typeof select }, windows: number) {
  const reader = new WindowReader(source([5, 3]), options, { epoch: 0, microBatch: 0 });
  let after = { epoch: 0, microBatch: 0 };
  for (let i = 0; i < windows; i++) after = (await reader.next()).after;
  return after;
}

it('counts rows by kind, without padding', () => {
  const batch = { ...batchOf(2, 1), lengths: Int32Array.of(5) };
  expect(countsOf(batch, 'supervised')).toEqual({ tokens: 5, supervised: 2, regularized: 2 });
  expect(countsOf(batch, 'non_padding')).toEqual({ tokens: 5, supervised: 2, regularized: 5 });
  expect(countsOf(batchOf(2, 1), 'label_aligned')).toEqual({
    tokens: 6,
    supervised: 2,
    regularized: 2,
  });
});

it('counts the steps of a run', async () => {
  const steps = (numTrainEpochs: number, maxSteps: number | null = null) =>
    countSteps(source([5, 3]), { accumulation: 2, numTrainEpochs, maxSteps });
  expect(await steps(1)).toBe(3);
  expect(await steps(2)).toBe(5);
  expect(await steps(1.5)).toBe(4);
  expect(await steps(0.1)).toBe(1);
  expect(await steps(3, 7)).toBe(7);
});
