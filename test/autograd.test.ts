// Automatic differentiation from TypeScript: accumulation, errors of misuse, custom ops, checkpointing, anomaly mode.
import { describe, expect, it } from 'vitest';
import { backward, checkpoint, customOp, recomputing } from '../lib/autograd.ts';
import { ArgumentError } from '../lib/errors.ts';
import { native } from '../lib/native.ts';
import {
  add,
  add_,
  concat,
  copy_,
  expand,
  linear,
  linearGroup,
  maximum,
  mul,
  ones,
  rmsNorm,
  slice,
  split,
  sqrt,
  sub,
  sum,
  swiglu,
  tanh,
  transpose,
  zeros,
} from '../lib/ops/index.ts';
import { batchInvariant, memoryStats, setAnomalyMode, synchronize } from '../lib/runtime.ts';
import { type DType, noGrad, scope, type Tensor, tensor } from '../lib/tensor.ts';
import { collectGarbage } from './support/collect_garbage.ts';
import { expectClose, roundingOf, values } from './support/compare.ts';
import { gradcheck, randomTensor } from './support/gradcheck.ts';

/** A user's op, for example: y = x^3 and its gradient, computed on the host. */
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
  it('accumulates grad in f32, also for narrower leaves, until it is set to null', () => {
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

  it('accumulates in place into a gradient that the caller set', () => {
    const x = tensor([[1, 2]], { dtype: 'f64', requiresGrad: true });
    const w = tensor([1, 1], { dtype: 'f64' });
    const into = tensor([[10, 20]], { dtype: 'f64' });
    x.grad = into;
    rmsNorm(x, w).backward(tensor([[1, 0]], { dtype: 'f64' }));
    expect((into.dataSync()[0] as number) - 10).toBeGreaterThan(0.1);
  });

  it('sums the gradients along every path', () => {
    gradcheck(
      (x) => {
        const a = cube(x as Tensor);
        return [cube(a), rmsNorm(a, tensor(new Float64Array(5).fill(2)))];
      },
      [randomTensor([3, 5], { seed: 11 })],
    );
  });

  it('starts from several roots at once', () => {
    const x = tensor([2], { dtype: 'f64', requiresGrad: true });
    const a = cube(x);
    backward([a, cube(a)]);
    expect(x.grad?.itemSync()).toBe(12 + 9 * 2 ** 8);
  });

  it('works on a chain too deep for recursion', () => {
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

  it('frees the graph while it runs', async () => {
    const w = tensor(new Float32Array(1000).fill(1));
    const x = tensor(new Float32Array(100_000).fill(1), { shape: [100, 1000], requiresGrad: true });
    await synchronize();
    const before = memoryStats().liveBytes;
    scope(() => {
      rmsNorm(rmsNorm(x, w), w).backward(tensor(new Float32Array(100_000), { shape: [100, 1000] }));
      x.grad = null;
    });
    await synchronize();
    // Only a bound, since tensors of earlier tests may be collected meanwhile; test/lifetime counts to the byte.
    expect(memoryStats().liveBytes).toBeLessThanOrEqual(before);
  });
});

describe('a gradient that is summed in f32', () => {
  type Made = (w: Tensor, other: Tensor, gain: Tensor) => Tensor;
  const given = (shape: number[], seed: number, dtype: DType): Tensor =>
    tensor(values(randomTensor(shape, { seed, dtype: 'bf16' })), { shape, dtype });

  /** The gradient by w of the sum of a linear whose weight is computed from w; all operands have one dtype. */
  function gradient(dtype: DType, made: Made, leaf = dtype): Tensor {
    const w = given([33, 31], 1, leaf);
    w.requiresGrad = true;
    const [other, gain] = [given([33, 31], 2, dtype), given([31], 3, dtype)];
    scope(() => sum(linear(given([5, 31], 4, dtype), made(w, other, gain))).backward());
    return w.grad as Tensor;
  }

  it.each<[string, Made]>([
    ['mul', (w, other) => mul(w, other)],
    ['maximum', (w, other) => maximum(w, other)],
    ['tanh', (w) => tanh(w)],
    ['rms_norm', (w, _, gain) => rmsNorm(w, gain)],
    ['mul behind a layout', (w, other) => transpose(transpose(mul(w, other)))],
  ])('reaches %s in its own type', (_, made) => {
    const narrow = gradient('bf16', made);
    expect(narrow.dtype).toBe('f32');
    expectClose(narrow, values(gradient('f64', made)), 8 * roundingOf('bf16'));
  });

  it("of a norm's weight reaches the tensor that the weight was computed from", () => {
    const run = (dtype: DType): Tensor => {
      const w = given([31], 1, dtype);
      w.requiresGrad = true;
      scope(() => sum(rmsNorm(given([5, 31], 2, dtype), tanh(w))).backward());
      return w.grad as Tensor;
    };
    expectClose(run('bf16'), values(run('f64')), 8 * roundingOf('bf16'));
  });

  it('is not rounded by ops that only move, convert or scale it', () => {
    const plain = values(gradient('bf16', (w) => w));
    expect(plain.some((value) => value !== values(tensor(value, { dtype: 'bf16' }))[0])).toBe(true);
    const kept: Made[] = [
      (w) => transpose(transpose(w)),
      (w) => concat([slice(w, 0, { stop: 1 }), slice(w, 0, { start: 1 })]),
      (w, other) => sub(add(w, other), other),
      (w) => mul(mul(w, -2), -0.5),
    ];
    for (const made of kept) {
      expect(values(gradient('bf16', made)), String(made)).toEqual(plain);
    }
    expect(values(gradient('bf16', (w) => w.to('bf16'), 'f32'))).toEqual(plain);
  });
});

it('a gradient has the widest dtype of its contributions, in whatever order they arrive', () => {
  const w = tensor([[1, 1]], { requiresGrad: true });
  const x = ones([75_000, 2], { dtype: 'f16' });
  for (const mulFirst of [true, false]) {
    const half = w.to('f16');
    const product = () => sum(linear(x, half).to('f32'));
    const scaled = () => sum(mul(half, ones([1, 2], { dtype: 'f16' })).to('f32'));
    const [first, second] = mulFirst ? [scaled(), product()] : [product(), scaled()];
    add(first, second).backward();
    expect(values(w.grad as Tensor)).toEqual(Float64Array.of(75_001, 75_001)); // the largest f16 is 65,504
    w.grad = null;
  }
});

it('the gradient of an f32 leaf stays f32 with contributions in f64', () => {
  const w = tensor([1, 2], { requiresGrad: true });
  sum(add(mul(w.to('f64'), 3), w.to('f64'))).backward();
  sum(w.to('f64')).backward();
  expect([w.grad?.dtype, [...values(w.grad as Tensor)]]).toEqual(['f32', [5, 5]]);
});

describe('recomputing', () => {
  it('does not recompute a value that was overwritten in place', () => {
    const x = tensor([[3, 4]], { requiresGrad: true });
    const run = (enabled: boolean): Float64Array => {
      const w = tensor([[1, 1]], { requiresGrad: true });
      recomputing(enabled, () => {
        const y = rmsNorm(x, tensor([1, 1]));
        noGrad(() => copy_(y, tensor([[5, 6]])));
        sum(linear(y, w)).backward();
      });
      return values(w.grad as Tensor);
    };
    expect(run(true)).toEqual(Float64Array.of(5, 6));
    expect(run(false)).toEqual(Float64Array.of(5, 6));
  });

  describe('products', () => {
    const leaves = () => ({
      x: tensor([[0.7]], { requiresGrad: true }),
      gate: tensor([[1], [-2]], { requiresGrad: true }),
      up: tensor([[3], [0.5]]),
    });
    /** y = silu(x gate^T) * (x up^T), summed; `meddle` is called with `up` and its weight before backward. */
    const run = (
      what: boolean | 'products',
      {
        meddle = () => {},
        times = 1,
      }: { meddle?: (up: Tensor, weight: Tensor) => void; times?: number } = {},
    ): Float64Array[] => {
      const { x, gate, up } = leaves();
      const total = recomputing(what, () => {
        const [g, u] = linearGroup(x, [{ weight: gate }, { weight: up }]) as [Tensor, Tensor];
        const y = sum(swiglu(g, u));
        meddle(u, up);
        return y;
      });
      for (let i = 1; i < times; i++) total.backward(undefined, { retainGraph: true });
      total.backward();
      return [x, gate].map(({ grad }) => values(grad as Tensor));
    };

    it('are repeated for the same gradients, in each backward through a graph', () => {
      expect(run('products')).toEqual(run(false));
      expect(run('products', { times: 3 })).toEqual(run(false, { times: 3 }));
    });

    it('are repeated in the form that they had, whatever is set in backward', () => {
      const gradients = (what: boolean | 'products') =>
        scope(() => {
          const x = randomTensor([40, 300], { dtype: 'f32', seed: 1, requiresGrad: true });
          const weights = [2, 3].map((seed) => ({
            weight: randomTensor([300, 300], { dtype: 'f32', seed }),
          }));
          const y = recomputing(what, () =>
            batchInvariant(() => {
              const [gate, up] = linearGroup(x, weights) as [Tensor, Tensor];
              return sum(swiglu(gate, up));
            }),
          );
          y.backward();
          return values(x.grad as Tensor);
        });
      expect(gradients('products')).toEqual(gradients(false));
    });

    it('are not where their value was overwritten in place', () => {
      const inPlace = (what: boolean | 'products') => {
        const { x, gate, up } = leaves();
        recomputing(what, () => {
          const [g, u] = linearGroup(x, [{ weight: gate }, { weight: up }]) as [Tensor, Tensor];
          noGrad(() => copy_(u, tensor([[3, 0.5]])));
          sum(swiglu(g, u)).backward();
        });
        return values(gate.grad as Tensor);
      };
      expect(inPlace('products')).toEqual(inPlace(false));
    });

    it('refuse a weight that was overwritten since', () => {
      const meddle = (_: Tensor, weight: Tensor): void =>
        noGrad(() => void copy_(weight, tensor([[1], [1]])));
      expect(() => run('products', { meddle })).toThrow('was overwritten in place since');
    });
  });
});

describe('misuse gives a clear error', () => {
  const w = () => tensor([1, 1], { dtype: 'f64' });
  const leaf = () => tensor([[1, 2]], { dtype: 'f64', requiresGrad: true });
  const one = () => tensor([[1, 1]], { dtype: 'f64' });

  it('for a second backward through a graph', () => {
    const y = rmsNorm(leaf(), w());
    y.backward(one());
    expect(() => y.backward(one())).toThrow('the graph of "rms_norm" was already used');
    const kept = rmsNorm(leaf(), w());
    kept.backward(one(), { retainGraph: true });
    kept.backward(one());
  });

  it('for nothing to differentiate, and for a missing or wrong initial gradient', () => {
    expect(() => rmsNorm(one(), w()).backward(one())).toThrow(
      'nothing below this tensor wants a gradient',
    );
    expect(() => rmsNorm(leaf(), w()).backward()).toThrow('needs an explicit gradient');
    expect(() => rmsNorm(leaf(), w()).backward(w())).toThrow(
      'the gradient is (2), the tensor (1,2)',
    );
    expect(() => noGrad(() => rmsNorm(leaf(), w())).backward(one())).toThrow('nothing below');
  });

  it('for gradients of tensors that can have none', () => {
    expect(() => tensor(new Int32Array(2), { requiresGrad: true })).toThrow('only float tensors');
    const y = rmsNorm(leaf(), w());
    expect(() => {
      y.requiresGrad = false;
    }).toThrow('leaf only');
    expect(() => {
      leaf().grad = w();
    }).toThrow('the gradient of a tensor (1,2) cannot be (2)');
  });

  it('for a gradient that cannot be accumulated into in place', () => {
    const x = tensor([1, 2, 3, 4], { requiresGrad: true });
    const six = tensor([0, 0, 0, 0, 0, 0, 0, 0]);
    const set = (grad: Tensor) => () => {
      x.grad = grad;
    };
    expect(set(slice(six, 0, { step: 2 }))).toThrow('the gradient must be contiguous');
    expect(set(expand(slice(six, 0, { stop: 1 }), [4]))).toThrow('must be contiguous');
    expect(set(zeros([4], { dtype: 'bf16' }))).toThrow('the gradient must be f32, got bf16');
    const frozen = zeros([4]);
    frozen.freeze();
    expect(set(frozen)).toThrow('a frozen tensor cannot be the gradient');
    const late = slice(six, 0, { start: 4 });
    set(late)();
    late.freeze();
    expect(() => sum(x).backward()).toThrow('a gradient that was frozen since');
    expect(values(six)).toEqual(new Float64Array(8));
  });

  it('for a disposed tensor', () => {
    const x = leaf();
    const y = rmsNorm(x, w());
    x.dispose(); // the graph keeps the values that it needs
    y.backward(one());
    y.dispose();
    expect(() => y.backward(one())).toThrow('disposed');
  });
});

describe('customOp', () => {
  it('has the gradient that its author defined', () => {
    gradcheck((x) => cube(x as Tensor), [randomTensor([7], { seed: 2 })]);
  });

  it('refuses a backward that writes to its argument, or is async', () => {
    const x = tensor([1], { requiresGrad: true });
    const op = (backward: (dy: Tensor) => unknown) =>
      customOp(
        {
          name: 'mine',
          forward: ([t]) => ({ outputs: [mul(t as Tensor, 2)], saved: 0 }),
          backward: ([dy]) => backward(dy as Tensor) as Tensor[],
        },
        [x],
      )[0] as Tensor;
    expect(() => op((dy) => [copy_(dy, zeros([1]))]).backward(tensor([3]))).toThrow(
      'mine: backward wrote in place to the gradient of output 0',
    );
    expect(() => op(async () => Promise.reject(new Error('unheard'))).backward()).toThrow(
      'mine: backward returned a promise; it must not be async',
    );
  });

  it('is named once in the message and stack of an error', () => {
    const shared = new ArgumentError('shared');
    const op = () =>
      customOp(
        {
          name: 'mine',
          forward: () => {
            throw shared;
          },
          backward: () => [],
        },
        [tensor([1])],
      );
    expect(op).toThrow('mine: forward: shared');
    expect(op).toThrow(/^mine: forward: shared$/);
    expect(shared.stack).toContain('ArgumentError: mine: forward: shared');
  });

  it('rethrows errors of its functions, and checks the number of gradients', () => {
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

  it.each([
    ['nothing', undefined, 'backward must return an array with one gradient'],
    ['no array', 4, 'backward must return an array with one gradient'],
    ['two for one', () => [null, null], 'backward must return an array with one gradient'],
    [
      'a hole',
      () => [undefined],
      'the gradient of input 0 must be a tensor or null, got undefined',
    ],
    ['another shape', () => [tensor([1, 2])], 'the gradient of input 0 must be (3), got (2)'],
  ])('refuses %s as gradients', (_, returned, message) => {
    const x = tensor([1, 2, 3], { requiresGrad: true });
    const [y] = customOp(
      {
        name: 'mine',
        forward: ([t]) => ({ outputs: [mul(t as Tensor, 1)], saved: null }),
        backward: () => (typeof returned === 'function' ? returned() : returned) as Tensor[],
      },
      [x],
    );
    expect(() => y?.backward(tensor([1, 1, 1]))).toThrow(
      expect.objectContaining({
        code: 'ERR_ARGUMENT',
        message: expect.stringContaining(`mine: ${message}`),
      }),
    );
  });

  /** x^2, whose backward uses a tensor that forward creates and saves in a nested object. */
  const square = (x: Tensor): Tensor =>
    customOp(
      {
        name: 'square',
        forward: ([t]) => {
          const double = mul(t as Tensor, 2);
          return { outputs: [mul(t as Tensor, t as Tensor)], saved: { factors: [double], n: 1 } };
        },
        backward: ([dy], { factors: [double], n }) => [mul(mul(dy as Tensor, double as Tensor), n)],
      },
      [x],
    )[0] as Tensor;

  it('keeps saved tensors after the caller has freed them', () => {
    const x = tensor([1, 2], { requiresGrad: true });
    const y = scope(() => square(mul(x, 3))); // the scope frees the input
    y.backward(tensor([1, 1]), { retainGraph: true });
    y.backward(tensor([1, 1])); // saved tensors serve every backward
    expect(values(x.grad as Tensor)).toEqual(new Float64Array([36, 72]));
    const input = mul(x, 1);
    const z = square(input);
    input.dispose();
    expect(() => z.backward(tensor([1, 1]))).not.toThrow();
  });

  it('frees saved tensors with the graph, not at the next garbage collection', async () => {
    const x = randomTensor([64], { requiresGrad: true });
    const alive = async (): Promise<[number, number]> => {
      await synchronize();
      const { liveBytes, liveTensors } = memoryStats();
      return [liveBytes, liveTensors];
    };
    await collectGarbage();
    const [bytes, tensors] = await alive();
    const walked = square(x);
    expect(await alive()).toEqual([bytes + 2 * 64 * 8, tensors + 1]); // its value and the saved tensor
    scope(() => sum(walked).backward());
    x.grad = null;
    expect(await alive()).toEqual([bytes + 64 * 8, tensors + 1]);
    walked.dispose();
    const dropped = square(x);
    dropped.dispose();
    expect(await alive()).toEqual([bytes, tensors]);
    noGrad(() => square(x)).dispose();
    expect(await alive()).toEqual([bytes, tensors]);
  });

  /** a + b, whose backward gives what `gradients` makes of dy; and the number of tensors that a failing walk leaves alive. */
  const leftBy = (
    gradients: (dy: Tensor) => (Tensor | null)[],
    prepare: (inputs: Tensor[]) => void,
    failure: string | RegExp,
  ): number => {
    const inputs = [tensor([1, 2], { requiresGrad: true }), tensor([3, 4], { requiresGrad: true })];
    prepare(inputs);
    const dy = tensor([1, 1]);
    const [y] = customOp(
      {
        name: 'plus',
        forward: ([a, b]) => ({ outputs: [add(a as Tensor, b as Tensor)], saved: [a, b] }),
        backward: ([given]) => gradients(given as Tensor),
      },
      inputs,
    );
    const before = memoryStats().liveTensors;
    expect(() => y?.backward(dy)).toThrow(failure);
    return memoryStats().liveTensors - before;
  };

  it('leaves no gradient alive where the tape refuses the first, or the second was disposed of', () => {
    const frozen = ([first]: Tensor[]) => {
      const grad = tensor([0, 0]);
      (first as Tensor).grad = grad;
      grad.freeze();
    };
    const twice = (dy: Tensor) => [mul(dy, 1), mul(dy, 1)];
    expect(leftBy(twice, frozen, /a gradient that was frozen since/)).toBe(0);
    const gone = (dy: Tensor) => {
      const [first, second] = twice(dy) as [Tensor, Tensor];
      expect([second.dtype, second.shape]).toEqual(['f32', [2]]); // known from now on
      second.dispose();
      return [first, second];
    };
    expect(leftBy(gone, () => {}, /was used after it was disposed/)).toBe(0);
  });

  it('leaves nothing alive where an array of handles cannot be made', () => {
    const x = tensor([1, 2, 3, 4]);
    const sizes = [1, 3];
    const before = memoryStats().liveTensors;
    const set = () => {
      throw new RangeError('no room');
    };
    let failure: unknown;
    Object.defineProperty(Array.prototype, '1', { configurable: true, set });
    try {
      native.split(x.handle, sizes, 0);
    } catch (error) {
      failure = error;
    } finally {
      Reflect.deleteProperty(Array.prototype, '1');
    }
    expect(failure).toBeInstanceOf(RangeError);
    expect(memoryStats().liveTensors).toBe(before);
  });

  it('refuses, in backward, a saved tensor that was overwritten since', () => {
    const x = tensor([1, 2], { requiresGrad: true });
    const input = noGrad(() => mul(x, 1));
    input.requiresGrad = true;
    const y = square(input);
    const cubed = cube(input);
    noGrad(() => add_(input, input, 1));
    expect(() => y.backward(tensor([1, 1]))).not.toThrow(); // it saved a tensor that was not overwritten
    expect(() => cubed.backward(tensor([1, 1]))).toThrow(
      /^cube: backward: a tensor \(2\) that the forward pass saved was overwritten/,
    );
  });

  it('is named in errors of the ops that its functions call', () => {
    const x = tensor([1, 2], { requiresGrad: true });
    const bad = (where: 'forward' | 'backward') =>
      customOp(
        {
          name: 'mine',
          forward: ([t]) => ({
            outputs: [mul(t as Tensor, where === 'forward' ? tensor([1, 2, 3]) : 1)],
            saved: null,
          }),
          backward: ([dy]) => [mul(dy as Tensor, tensor([1, 2, 3]))],
        },
        [x],
      )[0] as Tensor;
    expect(() => bad('forward')).toThrow(/^mine: forward: mul: /);
    expect(() => bad('backward').backward(tensor([1, 1]))).toThrow(/^mine: backward: mul: /);
  });

  it.each([
    ['a promise', async () => ({ outputs: [], saved: null })],
    ['nothing', () => undefined],
    ['no tensors', () => ({ outputs: [1], saved: null })],
  ])('refuses %s as the result of forward', (_, forward) => {
    const op = { name: 'mine', forward: forward as never, backward: () => [] };
    expect(() => customOp(op, [])).toThrow('mine: forward must return { outputs, saved }');
  });

  it('refuses a gradient whose dtype is not that of the input', () => {
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
  it('gives the same gradients, of tensors inside and outside of the segment', async () => {
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

  it('keeps only its input, while the plain segment keeps what each op saves', async () => {
    const x = randomTensor([512, 64], { seed: 4, requiresGrad: true });
    const size = 512 * 64 * 8;
    const segment = (t: Tensor): Tensor => {
      let y = t;
      for (let i = 0; i < 4; i++) y = mul(y, y);
      return y;
    };
    /** Bytes held between forward and backward, without the result. */
    const kept = async (f: (t: Tensor) => Tensor): Promise<number> => {
      await collectGarbage();
      const before = memoryStats().liveBytes;
      const y = scope(() => f(x));
      await synchronize();
      const found = memoryStats().liveBytes - before - size;
      scope(() => sum(y).backward());
      y.dispose();
      x.grad = null;
      return found;
    };
    expect(await kept(segment)).toBe(3 * size); // the results of three products
    expect(await kept((t) => checkpoint(segment, [t]))).toBe(0);
  });

  it('can be differentiated twice with retainGraph', () => {
    const x = tensor([2, 3], { requiresGrad: true });
    const y = scope(() => checkpoint((t) => mul(t, t), [mul(x, 1)]));
    y.backward(tensor([1, 1]), { retainGraph: true });
    y.backward(tensor([1, 1]));
    expect(values(x.grad as Tensor)).toEqual(new Float64Array([8, 12]));
  });

  it('passes a gradient on in the dtype of its input', () => {
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
  it('counts contributions, also into a gradient that the caller set or removed', () => {
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

  it('does not complain about finite values that are moved along any axis', async () => {
    const before = setAnomalyMode(true);
    try {
      const x = randomTensor([3, 4], { requiresGrad: true });
      const [left, right] = split(x, [1, 3], 1) as [Tensor, Tensor];
      const joined = concat([right, left, slice(x, 1, { start: 2 })], 1);
      sum(joined).backward();
      const into = zeros([3, 4]);
      copy_(slice(into, 1, { stop: 2 }), randomTensor([3, 2]));
      await synchronize();
      expect(values(x.grad as Tensor)).toEqual(Float64Array.of(1, 1, 2, 2, 1, 1, 2, 2, 1, 1, 2, 2));
    } finally {
      setAnomalyMode(before);
    }
  });

  it('names the op whose backward made a NaN from finite values', async () => {
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
