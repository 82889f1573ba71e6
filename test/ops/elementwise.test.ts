import { describe, expect, it } from 'vitest';
import {
  abs,
  add,
  allFinite,
  clamp,
  cos,
  div,
  dropout,
  equal,
  exp,
  finiteMask,
  gelu,
  greater,
  greaterEqual,
  less,
  lessEqual,
  log,
  maximum,
  minimum,
  mul,
  neg,
  notEqual,
  ones,
  pow,
  relu,
  rsqrt,
  sigmoid,
  silu,
  sin,
  softplus,
  sqrt,
  square,
  sub,
  sum,
  tanh,
  transpose,
  where,
} from '../../lib/ops/index.ts';
import { type DType, type Tensor, tensor } from '../../lib/tensor.ts';
import { expectClose, kFloatTypes, roundingOf, values } from '../support/compare.ts';
import { gradcheck, randomTensor } from '../support/gradcheck.ts';

const kSizes = [1, 31, 33, 123];

/** Tolerance: one rounding of the result, and f32 arithmetic where the values are not f64. */
const toleranceOf = (dtype: DType): number => roundingOf(dtype) + (dtype === 'f64' ? 1e-14 : 6e-7);

/** erf by its series, accurate to 1e-15 for the arguments here. */
function erf(x: number): number {
  let term = x;
  let total = x;
  for (let n = 1; n < 100; ++n) {
    term *= (-x * x) / n;
    total += term / (2 * n + 1);
  }
  return (2 / Math.sqrt(Math.PI)) * total;
}

const logistic = (x: number): number => 1 / (1 + Math.exp(-x));
const kUnary: Record<
  string,
  { op: (x: Tensor) => Tensor; plain: (x: number) => number; positive?: true }
> = {
  neg: { op: neg, plain: (x) => -x },
  abs: { op: abs, plain: Math.abs },
  exp: { op: exp, plain: Math.exp },
  log: { op: log, plain: Math.log, positive: true },
  sqrt: { op: sqrt, plain: Math.sqrt, positive: true },
  rsqrt: { op: rsqrt, plain: (x) => 1 / Math.sqrt(x), positive: true },
  square: { op: square, plain: (x) => x * x },
  sin: { op: sin, plain: Math.sin },
  cos: { op: cos, plain: Math.cos },
  tanh: { op: tanh, plain: Math.tanh },
  sigmoid: { op: sigmoid, plain: logistic },
  relu: { op: relu, plain: (x) => Math.max(x, 0) },
  silu: { op: silu, plain: (x) => x * logistic(x) },
  softplus: { op: softplus, plain: (x) => Math.log1p(Math.exp(x)) },
  gelu: { op: (x) => gelu(x), plain: (x) => 0.5 * x * (1 + erf(x / Math.SQRT2)) },
  'gelu, tanh form': {
    op: (x) => gelu(x, { approximate: 'tanh' }),
    plain: (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
  },
  clamp: {
    op: (x) => clamp(x, { low: -0.3, high: 0.6 }),
    plain: (x) => Math.min(Math.max(x, -0.3), 0.6),
  },
  'add of a number': { op: (x) => add(x, 2.5), plain: (x) => x + 2.5 },
  'number minus': { op: (x) => sub(2.5, x), plain: (x) => 2.5 - x },
  'minus a number': { op: (x) => sub(x, 2.5), plain: (x) => x - 2.5 },
  'mul by a number': { op: (x) => mul(2.5, x), plain: (x) => x * 2.5 },
  'div by a number': { op: (x) => div(x, 2.5), plain: (x) => x / 2.5 },
  'number by x': { op: (x) => div(2.5, x), plain: (x) => 2.5 / x, positive: true },
  'cube by pow': { op: (x) => pow(x, 3), plain: (x) => x ** 3, positive: true },
};

/** Random values in [-3, 3), or in [0.5, 3.5) where the function needs positive numbers. */
function operand(shape: number[], dtype: DType, positive?: boolean, seed = 1): Tensor {
  const raw = values(randomTensor(shape, { seed }));
  return tensor(
    raw.map((v) => (positive ? 2 + 1.5 * v : 3 * v)),
    { shape, dtype },
  );
}

describe('functions of one tensor', () => {
  for (const [name, { op, plain, positive }] of Object.entries(kUnary)) {
    it(`${name} equals its definition in every dtype and has its gradient`, () => {
      for (const size of kSizes) {
        for (const dtype of kFloatTypes) {
          const x = operand([size], dtype, positive);
          const y = op(x);
          expect(y.dtype).toBe(dtype);
          expectClose(y, values(x).map(plain), toleranceOf(dtype));
        }
        gradcheck((x) => op(x as Tensor), [operand([size], 'f64', positive)], { tolerance: 1e-7 });
      }
      const x = operand([5, 7], 'f64', positive);
      expectClose(op(transpose(x)), values(transpose(x)).map(plain), 1e-14);
      gradcheck((x) => op(transpose(x as Tensor)), [x], { tolerance: 1e-7 });
    });
  }

  it('keep NaN, infinities and the ends of their domains', () => {
    const x = tensor([NaN, Infinity, -Infinity, 0, -1]);
    const at = (t: Tensor) => Array.from(values(t));
    expect(at(exp(x)).slice(0, 4)).toEqual([NaN, Infinity, 0, 1]);
    expect(at(log(x))).toEqual([NaN, Infinity, NaN, -Infinity, NaN]);
    expect(at(tanh(x)).slice(0, 4)).toEqual([NaN, 1, -1, 0]);
    expect(at(softplus(x)).slice(0, 3)).toEqual([NaN, Infinity, 0]);
    expect(at(clamp(x, { low: -2, high: 2 }))).toEqual([NaN, 2, -2, 0, -1]);
    expect(at(relu(x))).toEqual([NaN, Infinity, 0, 0, 0]);
  });

  it('refuse integers and bad limits by name', () => {
    const whole = tensor(new Int32Array(3));
    expect(() => exp(whole)).toThrow('exp: x must be a float tensor, got i32');
    expect(() => clamp(randomTensor([2]), { low: 2, high: 1 })).toThrow(
      'clamp: low must not be above high, got 2 and 1',
    );
  });

  it('give a frozen operand no gradient', () => {
    const x = randomTensor([4]).freeze();
    const w = randomTensor([4], { seed: 2, requiresGrad: true });
    sum(mul(exp(x), w)).backward();
    expect(x.grad).toBeNull();
    expectClose(w.grad as Tensor, values(x).map(Math.exp), 1e-14);
  });
});

const kBinary: Record<
  string,
  { op: typeof add; plain: (a: number, b: number) => number; whole: boolean }
> = {
  add: { op: add, plain: (a, b) => a + b, whole: true },
  sub: { op: sub, plain: (a, b) => a - b, whole: true },
  mul: { op: mul, plain: (a, b) => a * b, whole: true },
  div: { op: div, plain: (a, b) => a / b, whole: false },
  pow: { op: pow, plain: (a, b) => a ** b, whole: false },
  maximum: { op: maximum, plain: Math.max, whole: true },
  minimum: { op: minimum, plain: Math.min, whole: true },
};

/** The values of x broadcast to `shape`. */
function broadcast(x: Tensor, shape: readonly number[]): Float64Array {
  const data = values(x);
  const size = shape.reduce((a, b) => a * b, 1);
  return Float64Array.from({ length: size }, (_, i) => {
    let rest = i;
    let at = 0;
    let step = 1;
    for (let d = shape.length - 1; d >= 0; --d) {
      const own = d - (shape.length - x.ndim);
      const index = rest % (shape[d] as number);
      rest = Math.floor(rest / (shape[d] as number));
      if (own < 0) continue;
      if (x.shape[own] !== 1) at += index * step;
      step *= x.shape[own] as number;
    }
    return data[at] as number;
  });
}

const kPairs: [number[], number[], number[]][] = [
  [[33], [33], [33]],
  [[4, 31], [31], [4, 31]],
  [
    [4, 31],
    [4, 1],
    [4, 31],
  ],
  [[1], [123], [123]],
  [[], [3, 5], [3, 5]],
  [
    [2, 1, 5],
    [3, 1],
    [2, 3, 5],
  ],
];

describe('functions of two tensors', () => {
  for (const [name, { op, plain, whole }] of Object.entries(kBinary)) {
    it(`${name} broadcasts, in every dtype, and sums its gradients back`, () => {
      for (const [left, right, shape] of kPairs) {
        for (const dtype of [...kFloatTypes, 'i32', 'i64'] as const) {
          if (!whole && (dtype === 'i32' || dtype === 'i64')) continue;
          const a = operand(left, dtype, true, 1);
          const b = operand(right, dtype, true, 2);
          const y = op(a, b);
          expect(y.shape).toEqual(shape);
          const [x, z] = [broadcast(a, shape), broadcast(b, shape)];
          expectClose(
            y,
            x.map((v, i) => plain(v, z[i] as number)),
            3 * toleranceOf(dtype),
          );
        }
        gradcheck(
          (a, b) => op(a as Tensor, b as Tensor),
          [operand(left, 'f64', true, 1), operand(right, 'f64', true, 2)],
        );
      }
    });
  }

  it('give an operand that is used twice the sum of both gradients', () => {
    const x = operand([31], 'f64', true);
    gradcheck((x) => mul(x as Tensor, x as Tensor), [x]);
    gradcheck((x) => div(add(x as Tensor, 1), x as Tensor), [x]);
  });

  it('sum the gradient of a broadcast operand in more than bf16', () => {
    const bias = tensor([0], { dtype: 'bf16', requiresGrad: true });
    sum(add(ones([4099], { dtype: 'bf16' }), bias)).backward();
    expect(bias.grad?.dtype).toBe('f32');
    expect(bias.grad?.itemSync()).toBe(4096); // 4099 rounded once to bf16
  });

  it('wrap around on integers', () => {
    const big = tensor(Int32Array.of(2147483647));
    expect(add(big, 1).itemSync()).toBe(-2147483648);
    expect(mul(big, 2).itemSync()).toBe(-2);
  });

  it('refuses bad pairs by name', () => {
    const a = randomTensor([2, 3]);
    expect(() => add(a, randomTensor([2]))).toThrow(
      'add: the shapes (2,3) and (2) do not broadcast',
    );
    expect(() => add(a, randomTensor([3], { dtype: 'f32' }))).toThrow(
      'add: b must be f64, got f32',
    );
    expect(() => div(tensor(new Int32Array(1)), 2)).toThrow('div: i32 tensors have no div');
    expect(() => add(tensor(new Uint8Array(1)), 1)).toThrow('add: u8 tensors have no add');
    expect(() => add(1, 2)).toThrow('add: one operand must be a tensor');
  });
});

describe('comparisons and where', () => {
  const cases = { equal, notEqual, less, lessEqual, greater, greaterEqual };
  const plain: Record<keyof typeof cases, (a: number, b: number) => boolean> = {
    equal: (a, b) => a === b,
    notEqual: (a, b) => a !== b,
    less: (a, b) => a < b,
    lessEqual: (a, b) => a <= b,
    greater: (a, b) => a > b,
    greaterEqual: (a, b) => a >= b,
  };
  it('compare every dtype, broadcast, give u8', () => {
    const left = [0, 1, 2, 3, 1, NaN];
    for (const dtype of [...kFloatTypes, 'i32', 'i64', 'u8'] as const) {
      const whole = dtype.startsWith('i') || dtype === 'u8';
      const a = tensor(whole ? left.slice(0, 5) : left, { dtype });
      for (const [name, op] of Object.entries(cases)) {
        const y = op(a, 1);
        expect(y.dtype).toBe('u8');
        expect(Array.from(values(y))).toEqual(
          Array.from(values(a), (v) => Number(plain[name as keyof typeof cases](v, 1))),
        );
        const outer = op(a, tensor([[1], [2]], { dtype }));
        expect(outer.shape).toEqual([2, a.size]);
      }
    }
  });

  it('where selects, broadcasts and passes the gradient to the selected side', () => {
    const condition = tensor([[1], [0]], { dtype: 'u8' });
    const a = randomTensor([3], { seed: 1 });
    const b = randomTensor([2, 3], { seed: 2 });
    expectClose(where(condition, a, b), [...values(a), ...values(b).slice(3)], 0);
    gradcheck((a, b) => where(condition, a as Tensor, b as Tensor), [a, b]);
    gradcheck((a) => where(condition, a as Tensor, 0.5), [a]);
    const poisoned = tensor([NaN, NaN, NaN], { requiresGrad: true });
    sum(where(tensor([0, 0, 0], { dtype: 'u8' }), poisoned, 1)).backward();
    expectClose(poisoned.grad as Tensor, [0, 0, 0], 0);
  });

  it('find values that are not finite', () => {
    const x = tensor([1, NaN, Infinity, -Infinity, 0]);
    expect(Array.from(values(finiteMask(x)))).toEqual([1, 0, 0, 0, 1]);
    expect(allFinite([randomTensor([5]), randomTensor([3])]).itemSync()).toBe(1);
    expect(allFinite([randomTensor([5]), x]).itemSync()).toBe(0);
    expect(allFinite([tensor([-Infinity])]).itemSync()).toBe(0);
  });

  it('refuse bad arguments by name', () => {
    expect(() => where(randomTensor([2]), 1, randomTensor([2]))).toThrow(
      'where: condition must be u8, got f64',
    );
    expect(() => less(randomTensor([2]), tensor([1]))).toThrow('less: b must be f64, got f32');
  });
});

describe('dropout', () => {
  it('zeroes about p, scales the rest, and repeats its mask in backward', () => {
    for (const dtype of kFloatTypes) {
      const scaled = values(tensor([1 / 0.75], { dtype }))[0];
      for (const size of [...kSizes, 10007]) {
        const x = ones([size], { dtype, requiresGrad: true });
        const y = dropout(x, { p: 0.25, seed: 5, stream: 3 });
        const got = values(y);
        for (const v of got) expect([0, scaled]).toContain(v);
        sum(y).backward();
        expectClose(x.grad as Tensor, got, 1e-3);
        if (size > 1000) {
          const kept = got.filter((v) => v !== 0).length / size;
          expect(Math.abs(kept - 0.75)).toBeLessThan(0.02);
        }
      }
    }
    gradcheck((x) => dropout(x as Tensor, { p: 0.5, seed: 9 }), [randomTensor([123])]);
  });

  it('depends only on seed and stream; p = 0 keeps and p = 1 drops everything', () => {
    const x = ones([1000]);
    const mask = (seed: number, stream: number) =>
      Array.from(values(dropout(x, { p: 0.5, seed, stream })));
    expect(mask(1, 2)).toEqual(mask(1, 2));
    expect(mask(1, 2)).not.toEqual(mask(1, 3));
    expect(mask(1, 2)).not.toEqual(mask(2, 2));
    expectClose(dropout(x, { p: 0, seed: 1 }), values(x), 0);
    expectClose(dropout(x, { p: 1, seed: 1 }), new Float64Array(1000), 0);
  });

  it('refuses bad arguments by name', () => {
    expect(() => dropout(ones([2]), { p: 1.5, seed: 0 })).toThrow(
      'dropout: p must be in [0,1], got 1.5',
    );
    expect(() => dropout(ones([2]), { p: 0.5, seed: -1 })).toThrow(
      'dropout: seed and stream must be >= 0',
    );
  });
});
