// Tensors in TypeScript: reading and writing values, lifetimes, errors that surface at a sync.
import { afterEach, describe, expect, it } from 'vitest';
import { ArgumentError, NativeError } from '../lib/errors.ts';
import { native } from '../lib/native.ts';
import { full, matmul, mul, rmsNorm } from '../lib/ops/index.ts';
import {
  memoryStats,
  setDebugMode,
  setMemoryLimit,
  synchronize,
  synchronizeSync,
} from '../lib/runtime.ts';
import { collecting, keep, scope, type Tensor, tensor, unscoped } from '../lib/tensor.ts';
import { collectGarbage } from './support/collect_garbage.ts';
import { expectSame } from './support/compare.ts';

afterEach(() => setMemoryLimit(0));

describe('tensor', () => {
  it('is created from numbers, nested arrays and typed arrays, and returns them', async () => {
    expect(tensor(3).shape).toEqual([]);
    expect(await tensor(3).item()).toBe(3);
    const nested = tensor([
      [1, 2, 3],
      [4, 5, 6],
    ]);
    expect(nested.shape).toEqual([2, 3]);
    expect(nested.dtype).toBe('f32');
    expect(await nested.data()).toEqual(new Float32Array([1, 2, 3, 4, 5, 6]));
    const ids = tensor(new Int32Array([7, 8]), { shape: [2, 1] });
    expect(ids.dtype).toBe('i32');
    expect(ids.dataSync()).toEqual(new Int32Array([7, 8]));
    expect(tensor(new BigInt64Array([2n ** 40n])).dataSync()).toEqual(
      new BigInt64Array([2n ** 40n]),
    );
    expect(tensor([]).shape).toEqual([0]);
    expect(tensor([]).dataSync()).toEqual(new Float32Array(0));
  });

  it('copies the array at the call, which may change afterwards', async () => {
    const array = new Float32Array([1, 2, 3]);
    const t = tensor(array);
    array.fill(9);
    expect(await t.data()).toEqual(new Float32Array([1, 2, 3]));
  });

  it('rounds once to bf16 and f16 when written, and widens when read', () => {
    const values = [1, 1.0039, -0.1, 65504, 3e-8];
    const bf16 = tensor(values, { dtype: 'bf16' }).dataSync();
    expect(bf16[0]).toBe(1);
    expect(bf16[1]).toBe(1.0078125 - 0.0078125); // a tie, rounded to even
    expect(Math.abs((bf16[2] as number) + 0.1)).toBeLessThan(0.1 / 256);
    const f16 = tensor(values, { dtype: 'f16' }).dataSync();
    expect(f16[3]).toBe(65504);
    expect(f16[4]).toBe(2 ** -24 * Math.round(3e-8 / 2 ** -24)); // a subnormal number
  });

  // Each thread has to do so: the elements are shared out among all.
  it('keeps subnormal numbers as written, and computes with zero in their place', () => {
    const values = new Float32Array(2 ** 20).fill(1e-40);
    const zeros = new Float32Array(2 ** 20);
    const subnormal = tensor(values);
    expectSame(subnormal.dataSync(), values);
    expectSame(scope(() => mul(subnormal, 2)).dataSync(), zeros);
    const smallest = tensor(new Float32Array(2 ** 20).fill(2 ** -126));
    expectSame(scope(() => mul(smallest, 0.5)).dataSync(), zeros);
    expectSame(scope(() => mul(smallest, 1)).dataSync(), smallest.dataSync());
    const left = full([64, 64], 1e-20);
    const right = full([64, 64], 1e-19);
    expect(scope(() => matmul(left, right)).dataSync()).toEqual(new Float32Array(2 ** 12));
    for (const each of [subnormal, smallest, left, right]) each.dispose();
  });

  it('refuses data that does not fit its shape or dtype', () => {
    expect(() => tensor([[1, 2], [3]])).toThrow('ragged');
    expect(() => tensor(new Float32Array(3), { shape: [2, 2] })).toThrow(
      'the shape (2,2) of f32 needs 16 bytes, the data has 12',
    );
    expect(() => tensor([1, 2]).itemSync()).toThrow('must have one element, got 2');
    expect(() => tensor([1], { shape: [1, 1, 1, 1, 1, 1, 1] })).toThrow('at most 6 dimensions');
    expect(() => tensor([], { shape: [-1] })).toThrow('negative');
    expect(() => tensor([], { shape: [2 ** 40, 2 ** 40] })).toThrow('is too large');
  });
});

describe('lifetime', () => {
  it('ends with dispose(), after which a use is an error', () => {
    const t = tensor([1, 2]);
    t.dispose();
    t.dispose(); // idempotent
    expect(() => t.shape).toThrow(ArgumentError);
    expect(() => t.dataSync()).toThrow('used after it was disposed');
    // The use is refused also after another tensor has got its slot.
    const other = tensor([3]);
    expect(() => rmsNorm(t, other)).toThrow('used after it was disposed');
  });

  it.each([Number.NaN, 1e300, -1e300, Number.POSITIVE_INFINITY, 2 ** 63, 0.5])(
    'has handles that are whole numbers: %d is none',
    (handle) => {
      const said = `expected a tensor, got ${handle}`;
      expect(() => native.shapeOf(handle)).toThrow(said);
      expect(() => native.dispose(handle)).toThrow(`expected an integer, got ${handle}`);
      const x = tensor(1);
      native.setRequiresGrad(x.handle, true);
      const [y = 0] = native.customNode('odd', [x.handle], [x.handle], [], () => [handle]);
      expect(() => native.backward([y], [null], false)).toThrow(said);
      native.dispose(y);
      x.dispose();
    },
  );

  it('of the gradients that a backward returns ends with their reading, also beside one that is none', () => {
    for (const [wrong, said] of [
      ['x', 'expected a tensor, got x'],
      [0.5, 'expected a tensor, got 0.5'],
    ] as const) {
      for (const place of [0, 1]) {
        const x = tensor(1);
        native.setRequiresGrad(x.handle, true);
        let made = 0;
        const backward = () => {
          made = tensor(1).handle;
          return place === 0 ? [wrong, made] : [made, wrong];
        };
        const [y = 0] = native.customNode('odd', [x.handle, x.handle], [x.handle], [], backward);
        expect(() => native.backward([y], [null], false)).toThrow(said);
        expect(() => native.shapeOf(made)).toThrow('used after it was disposed');
        native.dispose(y);
        x.dispose();
      }
    }
  });

  it('ends with scope() for tensors that are not returned, also nested', async () => {
    await synchronize();
    const before = memoryStats();
    let inner: Tensor | undefined;
    let kept: Tensor | undefined;
    const out = scope(() => {
      inner = tensor(new Float32Array(1000));
      kept = keep(tensor([5]));
      return { list: [scope(() => tensor([1, 2]))] };
    });
    expect(() => inner?.shape).toThrow('disposed');
    expect(kept?.itemSync()).toBe(5);
    expect(out.list[0]?.dataSync()).toEqual(new Float32Array([1, 2]));
    expect(memoryStats().liveTensors).toBeLessThanOrEqual(before.liveTensors + 2);
    kept?.dispose();
    out.list[0]?.dispose();
    await synchronize();
    expect(memoryStats().liveBytes).toBeLessThanOrEqual(before.liveBytes);
  });

  it('ends with a scope that throws; async bodies are refused', () => {
    const before = memoryStats().liveTensors;
    expect(() =>
      scope(() => {
        tensor([1]);
        throw new Error('mine');
      }),
    ).toThrow('mine');
    expect(memoryStats().liveTensors).toBeLessThanOrEqual(before);
    expect(() => scope(async () => {})).toThrow('must not be async');
  });

  it('ends with `using`', async () => {
    let outside: Tensor;
    {
      using t = tensor([1]);
      outside = t;
    }
    expect(() => outside.shape).toThrow('disposed');
  });

  // The collector does not watch tensors that a scope disposes of, so it must watch whatever survives one from then on.
  it.each<[string, () => unknown]>([
    ['was made outside a scope', () => tensor([1])],
    ['is the result of a scope', () => scope(() => [tensor([1]), { inner: tensor([2]) }])],
    ['is the result of a scope in a scope', () => scope(() => scope(() => tensor([1])))],
    ['was kept', () => scope(() => void keep(tensor([1])))],
    ['was kept in a scope in a scope', () => scope(() => scope(() => void keep(tensor([1]))))],
    ['was made unscoped', () => scope(() => void unscoped(() => tensor([1])))],
    ['was made for a collector that nobody keeps', () => collecting(new Set(), () => tensor([1]))],
  ])('ends when nobody refers to it any more, if it %s', async (_, make) => {
    await collectGarbage();
    const { liveTensors } = memoryStats();
    for (let i = 0; i < 5; i++) make();
    expect(memoryStats().liveTensors).toBeGreaterThan(liveTensors);
    await collectGarbage();
    expect(memoryStats().liveTensors).toBeLessThanOrEqual(liveTensors);
  });
});

describe('failures', () => {
  it.each([Number.NaN, -1, 1e300, Number.POSITIVE_INFINITY])(
    'name a limit of memory that is no number of bytes: %d',
    (bytes) => {
      expect(() => setMemoryLimit(bytes)).toThrow(
        /^setMemoryLimit: a limit must be a number of bytes, got /,
      );
      expect(tensor([1]).itemSync()).toBe(1); // no limit was set
    },
  );

  it('surface once, at the next sync, with the op, the shapes and the sizes', async () => {
    await collectGarbage();
    setMemoryLimit(memoryStats().liveBytes + 2_000_000);
    const x = tensor(new Float32Array(400_000), { shape: [1000, 400] });
    const w = tensor(new Float32Array(400));
    const y = rmsNorm(x, w);
    const z = rmsNorm(y, w); // enqueued after it, and skipped
    await expect(synchronize()).rejects.toThrow(
      /rms_norm: out of memory: 1600000 bytes wanted, \d+ in use on \S+, the limit is \d+ \[f32\(1000,400\), f32\(400\) -> f32\(1000,400\), f32\(1000\)\]/,
    );
    await synchronize(); // reported once
    setMemoryLimit(0);
    await expect(z.data()).rejects.toThrow('has no value, the op that makes it failed');
    await expect(z.data()).rejects.toBeInstanceOf(NativeError);
    expect((await rmsNorm(x, w).data()).length).toBe(400_000); // the engine stays usable
  });

  it('name the call site in debug mode', async () => {
    await synchronize();
    const x = tensor(new Float32Array(400_000), { shape: [1000, 400] });
    const w = tensor(new Float32Array(400));
    await synchronize();
    const before = setDebugMode(true);
    try {
      setMemoryLimit(1);
      rmsNorm(x, w);
      await expect(synchronize()).rejects.toThrow(
        /rms_norm: out of memory.*\n {2}enqueued at .*tensor\.test\.ts/,
      );
    } finally {
      setDebugMode(before);
    }
  });

  it('are thrown by the synchronous functions, too', () => {
    synchronizeSync();
    setMemoryLimit(1);
    tensor(new Float32Array(100));
    expect(() => synchronizeSync()).toThrow('out of memory');
  });
});
