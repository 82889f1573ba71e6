// The tape from TypeScript: accumulation, misuse by name, custom ops, recomputed segments, anomaly mode.
import { describe, expect, it } from 'vitest';
import {
  backward,
  checkpoint,
  customOp,
  memoryStats,
  mul,
  noGrad,
  rmsNorm,
  scope,
  setAnomalyMode,
  sqrt,
  sum,
  synchronize,
  type Tensor,
  tensor,
  zeros,
} from '../lib/index.ts';
import { gradcheck, randomTensor } from './support/gradcheck.ts';

/** y = x^3, with its gradient, computed on the host: a stand-in for a user's op. */
function cube(x: Tensor): Tensor {
  const apply = (t: Tensor, f: (value: number, i: number) => number): Tensor =>
    tensor(Float64Array.from(t.dataSync() as Float64Array, f), { shape: t.shape });
  return customOp(
    {
      name: 'cube',
      forward: ([input]) => ({
        outputs: [apply(input as Tensor, (v) => v ** 3)],
        saved: input as Tensor,
      }),
      backward: ([dy], saved) => {
        const g = (dy as Tensor).dataSync() as Float64Array;
        return [apply(saved, (v, i) => 3 * v * v * (g[i] as number))];
      },
    },
    [x],
  )[0] as Tensor;
}

describe('backward', () => {
  it('adds to grad in f32, also for narrower leaves, until it is dropped', () => {
    const x = tensor([[1, 2]], { dtype: 'bf16', requiresGrad: true });
    const w = tensor([1, 1], { dtype: 'bf16' });
    const dy = tensor([[1, 0]], { dtype: 'bf16' });
    rmsNorm(x, w).backward(dy);
    const once = x.grad as Tensor;
    expect(once.dtype).toBe('f32');
    const first = once.dataSync().slice();
    rmsNorm(x, w).backward(dy);
    const twice = (x.grad as Tensor).dataSync();
    expect(twice).toEqual((first as Float32Array).map((g) => 2 * g));
    x.grad = null;
    expect(x.grad).toBeNull();
  });

  it('adds in place to a gradient that the caller set', () => {
    const x = tensor([[1, 2]], { dtype: 'f64', requiresGrad: true });
    const w = tensor([1, 1], { dtype: 'f64' });
    const into = tensor([[10, 20]], { dtype: 'f64' });
    x.grad = into;
    rmsNorm(x, w).backward(tensor([[1, 0]], { dtype: 'f64' }));
    expect((into.dataSync()[0] as number) - 10).toBeGreaterThan(0.1);
  });

  it('reaches a value along every path', () => {
    gradcheck(
      (x) => {
        const a = cube(x as Tensor);
        return [cube(a), rmsNorm(a, tensor(new Float64Array(5).fill(2)))];
      },
      [randomTensor([3, 5], { seed: 11 })],
    );
  });

  it('walks from several roots at once', () => {
    const x = tensor([2], { dtype: 'f64', requiresGrad: true });
    const a = cube(x);
    backward([a, cube(a)]);
    expect(x.grad?.itemSync()).toBe(12 + 9 * 2 ** 8);
  });

  it('walks a chain too deep for recursion', () => {
    const x = tensor([1], { requiresGrad: true });
    const w = tensor([1]);
    const y = scope(() => {
      let t = x;
      for (let i = 0; i < 50_000; ++i) t = rmsNorm(t, w);
      return t;
    });
    y.backward(tensor([1]));
    expect(Number.isFinite(x.grad?.itemSync())).toBe(true);
  });

  it('frees the graph as it goes', async () => {
    const w = tensor(new Float32Array(1000).fill(1));
    const x = tensor(new Float32Array(100_000).fill(1), { shape: [100, 1000], requiresGrad: true });
    await synchronize();
    const before = memoryStats().liveBytes;
    scope(() => {
      rmsNorm(rmsNorm(x, w), w).backward(tensor(new Float32Array(100_000), { shape: [100, 1000] }));
      x.grad = null;
    });
    await synchronize();
    // A bound: tensors that earlier tests dropped may be collected meanwhile. test/lifetime counts to the byte.
    expect(memoryStats().liveBytes).toBeLessThanOrEqual(before);
  });
});

describe('misuse is an error with a name', () => {
  const w = () => tensor([1, 1], { dtype: 'f64' });
  const leaf = () => tensor([[1, 2]], { dtype: 'f64', requiresGrad: true });
  const one = () => tensor([[1, 1]], { dtype: 'f64' });

  it('walking a graph twice', () => {
    const y = rmsNorm(leaf(), w());
    y.backward(one());
    expect(() => y.backward(one())).toThrow('the graph of "rms_norm" was already used');
    const kept = rmsNorm(leaf(), w());
    kept.backward(one(), { retainGraph: true });
    kept.backward(one());
  });

  it('nothing to differentiate, or no gradient to start from', () => {
    expect(() => rmsNorm(one(), w()).backward(one())).toThrow(
      'nothing below this tensor wants a gradient',
    );
    expect(() => rmsNorm(leaf(), w()).backward()).toThrow('needs an explicit gradient');
    expect(() => rmsNorm(leaf(), w()).backward(w())).toThrow(
      'the gradient is (2), the tensor (1,2)',
    );
    expect(() => noGrad(() => rmsNorm(leaf(), w())).backward(one())).toThrow('nothing below');
  });

  it('gradients where there can be none', () => {
    expect(() => tensor(new Int32Array(2), { requiresGrad: true })).toThrow('only float tensors');
    const y = rmsNorm(leaf(), w());
    expect(() => {
      y.requiresGrad = false;
    }).toThrow('leaf only');
    expect(() => {
      leaf().grad = w();
    }).toThrow('the gradient of a tensor (1,2) cannot be (2)');
  });

  it('a disposed tensor', () => {
    const x = leaf();
    const y = rmsNorm(x, w());
    x.dispose(); // the graph keeps what it needs
    y.backward(one());
    y.dispose();
    expect(() => y.backward(one())).toThrow('disposed');
  });
});

describe('customOp', () => {
  it('has the gradient its author gave', () => {
    gradcheck((x) => cube(x as Tensor), [randomTensor([7], { seed: 2 })]);
  });

  it('passes on what its functions throw, and counts gradients', () => {
    const x = tensor([1], { requiresGrad: true });
    const op = (backwardFn: () => Tensor[]) =>
      customOp(
        {
          name: 'mine',
          forward: (inputs) => ({ outputs: [...inputs], saved: 0 }),
          backward: backwardFn,
        },
        [x],
      )[0] as Tensor;
    expect(() => op(() => []).backward()).toThrow(
      'mine: backward must return an array with one gradient',
    );
    expect(() =>
      op(() => {
        throw new RangeError('by the author');
      }).backward(),
    ).toThrow(RangeError);
  });

  it('refuses a gradient of another type than its input', () => {
    const x = randomTensor([3], { dtype: 'bf16', requiresGrad: true });
    const [y] = customOp(
      {
        name: 'copy',
        forward: ([t]) => ({ outputs: [mul(t as Tensor, 1)], saved: null }),
        backward: ([dy]) => [(dy as Tensor).to('f32')],
      },
      [x],
    );
    expect(() => y?.backward(randomTensor([3], { dtype: 'bf16' }))).toThrow(
      'copy: the gradient of input 0 must be bf16, got f32',
    );
  });
});

describe('checkpoint', () => {
  it('gives the same gradients, inside and around it', async () => {
    const weights = randomTensor([6], { seed: 3, requiresGrad: true });
    const segment = (x: Tensor) => cube(rmsNorm(cube(x), weights));
    const x = randomTensor([4, 6], { seed: 4, requiresGrad: true });
    const dy = randomTensor([4, 6], { seed: 5 });
    const run = (f: (x: Tensor) => Tensor) => {
      scope(() => rmsNorm(f(cube(x)), tensor(new Float64Array(6).fill(1))).backward(dy));
      const grads = [x, weights].map((leaf) => Array.from(leaf.grad?.dataSync() as Float64Array));
      x.grad = null;
      weights.grad = null;
      return grads;
    };
    expect(run((t) => checkpoint(segment, [t]))).toEqual(run(segment));
  });

  it('keeps its input alone where the segment would keep what each op saves', async () => {
    const x = randomTensor([512, 64], { seed: 4, requiresGrad: true });
    const size = 512 * 64 * 8;
    const segment = (t: Tensor): Tensor => {
      let y = t;
      for (let i = 0; i < 4; i++) y = mul(y, y);
      return y;
    };
    /** Bytes that stand between forward and backward, the result apart. */
    const kept = async (f: (t: Tensor) => Tensor): Promise<number> => {
      await synchronize();
      const before = memoryStats().liveBytes;
      const y = scope(() => f(x));
      await synchronize();
      const found = memoryStats().liveBytes - before - size;
      scope(() => sum(y).backward());
      y.dispose();
      x.grad = null;
      return found;
    };
    expect(await kept(segment)).toBe(3 * size); // what three of the products made, x apart
    expect(await kept((t) => checkpoint(segment, [t]))).toBe(0);
  });

  it('gives on a gradient in the type of its input', () => {
    const run = (body: (t: Tensor) => Tensor): number[] => {
      const x = randomTensor([33], { seed: 3, dtype: 'bf16', requiresGrad: true });
      scope(() => sum(mul(body(mul(x, x)), body(mul(x, 0.5)))).backward());
      return Array.from(x.grad?.dataSync() as Float32Array);
    };
    const segment = (t: Tensor) => mul(t, t);
    const kept = run(segment);
    run((t) => checkpoint(segment, [t])).forEach((value, i) => {
      // The segment's own sums are f32 in one and bf16 in the other.
      expect(Math.abs(value - (kept[i] as number))).toBeLessThanOrEqual(2 ** -6);
    });
  });
});

describe('gradCount', () => {
  it('counts contributions, whoever owns the gradient and whether it was dropped', () => {
    const x = tensor([1, 2], { requiresGrad: true });
    expect(x.gradCount).toBe(0);
    sum(mul(x, x)).backward(); // both factors
    expect(x.gradCount).toBe(2);
    x.grad = zeros([2]);
    sum(mul(x, 3)).backward();
    expect(x.gradCount).toBe(3);
    x.grad = null;
    noGrad(() => mul(x, 3));
    expect(x.gradCount).toBe(3);
  });
});

describe('anomaly mode', () => {
  it('names the op that made the first NaN', async () => {
    const before = setAnomalyMode(true);
    try {
      const y = rmsNorm(tensor([[Number.NaN, 1]]), tensor([1, 1]));
      rmsNorm(y, tensor([1, 1]));
      await expect(synchronize()).rejects.toThrow(
        'rms_norm: made a value that is not finite (NaN or infinity) [f32(1,2), f32(2) -> f32(1,2), f32(1)]',
      );
    } finally {
      setAnomalyMode(before);
    }
  });

  it('names the op whose backward made one from values that all were finite', async () => {
    const before = setAnomalyMode(true);
    try {
      // sqrt'(0) is infinite, and 0 times that is no number.
      const x = tensor([0, 4], { requiresGrad: true });
      const y = sqrt(x);
      await synchronize();
      sum(mul(y, tensor([0, 1]))).backward();
      await expect(synchronize()).rejects.toThrow(
        /^sqrt.*: made a value that is not finite \(NaN or infinity\) \[/,
      );
    } finally {
      setAnomalyMode(before);
    }
  });
});
