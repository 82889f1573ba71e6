// Ops under a signal: what is skipped once it aborts, what is not, and what reading says.
import { getEventListeners } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import {
  beyondAbort,
  delayed,
  type Following,
  firstOf,
  heed,
  isAborted,
  orReason,
  withAbort,
} from '../lib/abort.ts';
import { captureGraph } from '../lib/graph.ts';
import {
  add,
  add_,
  attention,
  concat,
  copy_,
  headRows,
  linear,
  matmul,
  mul,
  ones,
  pcaUpdates,
  randn,
  randomizedSvds,
  scaledGramAdd,
  slice,
  zeros,
} from '../lib/ops/index.ts';
import { memoryStats, opTimes, resetOpTimes, synchronize } from '../lib/runtime.ts';
import { computeOwned, noGrad, scope, type Tensor, tensor, unscoped } from '../lib/tensor.ts';

/** The signal of a controller, heeded for good. */
function heeded(controller = new AbortController()): AbortSignal {
  heed(controller.signal);
  return controller.signal;
}

const kAborted = AbortSignal.abort(new Error('enough'));
const kRefused = { code: 'ERR_ABORTED', message: expect.stringMatching(/was aborted/) };

describe('ops under a signal', () => {
  it('are skipped once it aborts, hold no memory, and are refused by name when they are read', async () => {
    await synchronize();
    const before = memoryStats().liveBytes;
    const x = withAbort(kAborted, () => zeros([1000, 1000]));
    await synchronize(); // the abort is no failure of the engine's
    expect(memoryStats().liveBytes).toBe(before);
    await expect(x.data()).rejects.toMatchObject(kRefused);
    await synchronize();
    x.dispose();
  });

  it('take those with them that read their results, under whatever signal', async () => {
    const x = withAbort(kAborted, () => ones([4]));
    const y = add(x, 1);
    const z = withAbort(heeded(), () => mul(y, 2));
    await expect(z.data()).rejects.toMatchObject(kRefused);
    expect(isAborted(await z.data().catch((error: unknown) => error))).toBe(true);
  });

  it('leave the ops of others alone, before and after', async () => {
    const stop = new AbortController();
    const signal = heeded(stop);
    const a = ones([512, 512]);
    resetOpTimes();
    const mine: Tensor[] = [];
    const others: Tensor[] = [];
    for (let i = 0; i < 400; i++) {
      mine.push(withAbort(signal, () => matmul(a, a)));
      if (i % 100 === 0) others.push(add(a, i));
    }
    stop.abort();
    await expect((mine.at(-1) as Tensor).data()).rejects.toMatchObject(kRefused);
    for (const [i, x] of others.entries())
      expect(((await x.data()) as Float32Array)[7]).toBe(1 + 100 * i);
    const ran = opTimes().find(({ op }) => op === 'matmul')?.calls ?? 0;
    expect(ran).toBeLessThan(400);
    for (const x of [a, ...mine, ...others]) x.dispose();
  });

  it('run as ever under a signal that does not abort', async () => {
    const signal = heeded();
    expect(await withAbort(signal, () => add(ones([2]), 1)).data()).toEqual(Float32Array.of(2, 2));
    expect(await withAbort(undefined, () => add(ones([2]), 1)).data()).toEqual(
      Float32Array.of(2, 2),
    );
  });

  it('that write in place leave a tensor that is refused until all of it is written', async () => {
    const x = ones([4]);
    withAbort(kAborted, () => add_(x, ones([4])));
    await expect(x.data()).rejects.toMatchObject(kRefused);
    add_(x, ones([4]));
    await expect(x.data()).rejects.toMatchObject(kRefused);
    copy_(x, tensor([1, 2, 3, 4]));
    expect(await x.data()).toEqual(Float32Array.of(1, 2, 3, 4));
  });

  it('run where others use their results: beyondAbort() and unscoped()', async () => {
    const [x, y, z] = withAbort(kAborted, () => [
      beyondAbort(() => ones([1])),
      unscoped(() => ones([1])),
      computeOwned(() => ones([1])),
    ]) as [Tensor, Tensor, Tensor];
    expect(await x.data()).toEqual(Float32Array.of(1));
    expect(await y.data()).toEqual(Float32Array.of(1));
    await expect(z.data()).rejects.toMatchObject(kRefused);
  });

  it('of a graph are skipped with it, and it runs again under none', async () => {
    const x = tensor([1, 2]);
    const graph = captureGraph(() => ({ y: scope(() => add(mul(x, 3), 1)) }));
    graph.replay();
    expect(await graph.result.y.data()).toEqual(Float32Array.of(4, 7));
    withAbort(kAborted, () => graph.replay());
    await expect(graph.result.y.data()).rejects.toMatchObject(kRefused);
    graph.replay();
    expect(await graph.result.y.data()).toEqual(Float32Array.of(4, 7));
    withAbort(kAborted, () => copy_(x, tensor([5, 6])));
    graph.replay();
    await expect(graph.result.y.data()).rejects.toMatchObject(kRefused);
    graph.dispose();
  });

  it('cannot be recorded in part', () => {
    const x = ones([2]);
    expect(() => captureGraph(() => ({ y: withAbort(kAborted, () => add(x, 1)) }))).toThrow(
      /was aborted/,
    );
  });

  it('give the reason of the signal where it came first', async () => {
    const x = withAbort(kAborted, () => concat([ones([1]), ones([1])], 0));
    await expect(orReason(kAborted, () => x.data())).rejects.toThrow('enough');
    await expect(orReason(new AbortController().signal, () => x.data())).rejects.toMatchObject(
      kRefused,
    );
    const other = new Error('another');
    await expect(orReason(kAborted, () => Promise.reject(other))).rejects.toBe(other);
  });
});

describe('a long kernel', () => {
  /** Processor time in seconds that an op uses after its work is aborted in the middle of it. */
  async function spentAfter(run: () => Tensor): Promise<number> {
    const stop = new AbortController();
    const result = withAbort(heeded(stop), run);
    await sleep(400);
    const begun = process.cpuUsage();
    stop.abort();
    await expect(result.data()).rejects.toMatchObject(kRefused);
    const { user, system } = process.cpuUsage(begun);
    return (user + system) / 1e6;
  }

  it.each(['f32', 'bf16'] as const)('attention of many rows in %s ends early', async (dtype) => {
    // 10^12 products, which take longer than ten seconds of a core.
    const rows = 40_000;
    const x = ones([rows, 9, 64], { dtype });
    const cuSeqlens = tensor(Int32Array.of(0, rows));
    await synchronize();
    expect(await spentAfter(() => attention(x, x, x, { cuSeqlens }))).toBeLessThan(2);
  });

  it('the losses of a head end early', async () => {
    const hidden = ones([40_000, 512]);
    const weight = ones([30_000, 512]);
    const targets = tensor(new Int32Array(40_000));
    await synchronize();
    const rows = () => noGrad(() => headRows({ hidden, targets, head: weight }));
    expect(await spentAfter(rows)).toBeLessThan(2);
  });

  it('a product with a frozen weight ends early', async () => {
    const [x, weight] = [ones([80_000, 2048]), ones([2048, 2048]).freeze()];
    await synchronize();
    expect(await spentAfter(() => linear(x, weight))).toBeLessThan(2);
  });

  it('a product of more rows than between two looks has the bits of its parts', async () => {
    const weight = randn([96, 64], { seed: 1 }).freeze();
    const x = randn([20_000, 64], { seed: 2 });
    const some = linear(x, weight);
    for (const start of [0, 8000, 15_000]) {
      const part = linear(slice(x, 0, { start, stop: start + 5000 }), weight);
      const same = slice(some, 0, { start, stop: start + 5000 });
      const [mine, its] = (await Promise.all([part.data(), same.data()])) as Float32Array[];
      expect(
        Buffer.from(mine?.buffer as ArrayBuffer).equals(Buffer.from(its?.buffer as ArrayBuffer)),
      ).toBe(true);
    }
  });

  it('second moments of many rows end early', async () => {
    const [sum, rows] = [zeros([2048, 2048], { dtype: 'f64' }), ones([100_000, 2048])];
    const scale = ones([100_000]);
    await synchronize();
    const add = () => {
      scaledGramAdd(sum, rows, scale);
      return sum;
    };
    expect(await spentAfter(add)).toBeLessThan(2);
  });

  it('principal components of many rows end early', async () => {
    const x = randn([20_000, 1024], { seed: 3 });
    await synchronize();
    const tasks = Array.from({ length: 32 }, (_, seed) => ({ x, rank: 16, seed }));
    expect(await spentAfter(() => pcaUpdates(tasks)[0]?.vectors as Tensor)).toBeLessThan(2);
  });

  it('decompositions of many matrices end early', async () => {
    const a = randn([1024, 1024], { seed: 5 });
    const tasks = Array.from({ length: 128 }, (_, seed) => ({ a, rank: 64, seed }));
    await synchronize();
    expect(await spentAfter(() => randomizedSvds(tasks)[0]?.s as Tensor)).toBeLessThan(2);
  });
});

describe('a delayed signal', () => {
  it('aborts later, with the reason of the first', async () => {
    expect(delayed(undefined, 1)).toBeUndefined();
    const { signal: later } = delayed(kAborted, 5) as Following;
    expect(later.aborted).toBe(false);
    await new Promise((resolve) => later.addEventListener('abort', resolve));
    expect(later.reason).toBe(kAborted.reason);
  });

  it('does not abort once it is released', async () => {
    const { signal: later, release } = delayed(kAborted, 5) as Following;
    release();
    await sleep(20);
    expect(later.aborted).toBe(false);
  });
});

describe('a signal', () => {
  const listeners = (signal: AbortSignal): number => getEventListeners(signal, 'abort').length;

  it('that follows others aborts with the first of them', () => {
    const stop = new AbortController();
    const { signal } = firstOf(new AbortController().signal, stop.signal);
    expect(signal.aborted).toBe(false);
    stop.abort(new Error('second'));
    expect(signal.reason).toBe(stop.signal.reason);
    expect(firstOf(new AbortController().signal, kAborted).signal.reason).toBe(kAborted.reason);
  });

  it('is let go of by works that have ended, however they did, and not before the last has', async () => {
    const { signal } = new AbortController();
    let end = (): void => {};
    const long = orReason(signal, () => new Promise<void>((resolve) => (end = resolve)));
    const bad = orReason(signal, () => Promise.reject(new Error('bad')));
    expect(listeners(signal)).toBe(1);
    await expect(bad).rejects.toThrow('bad');
    expect(listeners(signal)).toBe(1);
    end();
    await long;
    expect(listeners(signal)).toBe(0);
    for (const follow of [() => firstOf(signal), () => delayed(signal, 5) as Following]) {
      const following = follow();
      expect(listeners(signal)).toBe(1);
      following.release();
      expect(listeners(signal)).toBe(0);
    }
  });

  it('that nothing heeds is refused', () => {
    expect(() => withAbort(new AbortController().signal, () => ones([1]))).toThrow(/heeds/);
  });
});
