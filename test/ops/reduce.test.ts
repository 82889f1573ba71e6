import { describe, expect, it } from 'vitest';
import {
  argmax,
  argmin,
  logSumExp,
  max,
  mean,
  min,
  ones,
  type ReduceOptions,
  sum,
  transpose,
  variance,
} from '../../lib/ops/index.ts';
import { type Tensor, tensor } from '../../lib/tensor.ts';
import { expectClose, kFloatTypes, roundingOf, values } from '../support/compare.ts';
import { gradcheck, randomTensor } from '../support/gradcheck.ts';

const total = (v: number[]): number => v.reduce((a, b) => a + b, 0);
const average = (v: number[]): number => total(v) / v.length;
const kOps: Record<
  string,
  { op: (x: Tensor, o?: ReduceOptions) => Tensor; plain: (v: number[]) => number }
> = {
  sum: { op: sum, plain: total },
  mean: { op: mean, plain: average },
  logSumExp: { op: logSumExp, plain: (v) => Math.log(total(v.map(Math.exp))) },
  'variance (1)': {
    op: (x, o) => variance(x, o),
    plain: (v) => total(v.map((x) => (x - average(v)) ** 2)) / (v.length - 1),
  },
  'variance (0)': {
    op: (x, o) => variance(x, { ...o, correction: 0 }),
    plain: (v) => total(v.map((x) => (x - average(v)) ** 2)) / v.length,
  },
  max: { op: max, plain: (v) => Math.max(...v) },
  min: { op: min, plain: (v) => Math.min(...v) },
};

/** The groups of values that are reduced together, in the order of the result. */
function groups(x: Tensor, axes: readonly number[]): number[][] {
  const { shape } = x;
  const kept = shape.map((_, d) => d).filter((d) => !axes.includes(d));
  const out = new Map<number, number[]>();
  values(x).forEach((v, i) => {
    const index = shape.map(() => 0);
    let rest = i;
    for (let d = shape.length - 1; d >= 0; --d) {
      index[d] = rest % (shape[d] as number);
      rest = Math.floor(rest / (shape[d] as number));
    }
    const key = kept.reduce((k, d) => k * (shape[d] as number) + (index[d] as number), 0);
    if (!out.has(key)) out.set(key, []);
    out.get(key)?.push(v);
  });
  return [...out.keys()].sort((a, b) => a - b).map((key) => out.get(key) as number[]);
}

const kCases: [number[], number[]][] = [
  [[33], [0]],
  [[31, 33], [1]],
  [[31, 33], [0]],
  [
    [3, 123],
    [0, 1],
  ],
  [[3, 4, 5], [1]],
  [
    [3, 4, 5],
    [0, 2],
  ],
  [
    [2, 3, 4, 5],
    [1, 3],
  ],
  [
    [2, 1, 4, 5],
    [1, 2],
  ],
  [[5, 2, 1], [1]],
];

describe('reductions', () => {
  for (const [name, { op, plain }] of Object.entries(kOps)) {
    it(`${name} over any axes, in every dtype, with its gradient`, () => {
      for (const [shape, axes] of kCases) {
        for (const dtype of kFloatTypes) {
          const x = randomTensor(shape, { seed: 3, dtype });
          const want = groups(x, axes).map(plain);
          const y = op(x, { axis: axes });
          expect(y.shape).toEqual(shape.filter((_, d) => !axes.includes(d)));
          expect(y.dtype).toBe(dtype);
          expectClose(y, want, roundingOf(dtype) * 1.01 + (dtype === 'f64' ? 1e-13 : 3e-7));
          const negative = op(x, { axis: axes.map((a) => a - shape.length), keepDims: true });
          expect(negative.shape).toEqual(shape.map((n, d) => (axes.includes(d) ? 1 : n)));
          expectClose(negative, values(y), 0);
        }
        const x = randomTensor(shape, { seed: 4 });
        gradcheck((x) => op(x as Tensor, { axis: axes }), [x]);
        gradcheck((x) => op(x as Tensor, { axis: axes, keepDims: true }), [x]);
      }
      const x = randomTensor([7, 5], { seed: 5 });
      expectClose(op(x), [plain(Array.from(values(x)))], 1e-13);
      expect(op(x).shape).toEqual([]);
      gradcheck((x) => op(transpose(x as Tensor), { axis: 0 }), [x]);
    });
  }

  it('sum a long row to the last bit of f32', () => {
    const size = 1_000_003;
    const x = tensor(new Float32Array(size).fill(0.1));
    expect(sum(x).itemSync()).toBe(Math.fround(size * Math.fround(0.1)));
    expect(sum(ones([65537], { dtype: 'f32' })).itemSync()).toBe(65537);
  });

  it('return the first of equal extremes, which alone gets the gradient', () => {
    const x = tensor(
      [
        [1, 3, 3],
        [2, 2, 0],
      ],
      { dtype: 'f64', requiresGrad: true },
    );
    const where = argmax(x);
    expect(where.dtype).toBe('i32');
    expect(Array.from(values(where))).toEqual([1, 0]);
    expect(Array.from(values(argmin(x, { axis: 0 })))).toEqual([0, 1, 1]);
    expect(argmin(x, { axis: 0, keepDims: true }).shape).toEqual([1, 3]);
    sum(max(x, { axis: 1 })).backward();
    expectClose(x.grad as Tensor, [0, 1, 0, 1, 0, 0], 0);
  });

  it('return NaN for extremes and sums with a NaN', () => {
    const x = tensor([1, NaN, 2]);
    for (const op of [max, min, sum, mean, logSumExp, variance]) {
      expect(op(x).itemSync()).toBeNaN();
    }
    expect(argmax(x).itemSync()).toBe(1);
  });

  it('have a value for an empty axis, or refuse it', () => {
    const none = tensor(new Float32Array(0), { shape: [2, 0] });
    expectClose(sum(none, { axis: 1 }), [0, 0], 0);
    expect(() => mean(none, { axis: 1 })).toThrow('mean: nothing to reduce in (2,0)');
    expect(() => max(none, { axis: 1 })).toThrow('max: nothing to reduce in (2,0)');
    expect(() => variance(ones([3, 1]), { axis: 1 })).toThrow(
      'variance: 1 values are too few for a correction of 1',
    );
  });

  it('refuse bad axes and dtypes by name', () => {
    const x = randomTensor([2, 3]);
    expect(() => sum(x, { axis: 2 })).toThrow('sum: axis 2 does not exist in (2,3)');
    expect(() => sum(x, { axis: [0, -2] })).toThrow('sum: axis -2 occurs twice');
    expect(() => sum(tensor(new Int32Array(2)))).toThrow('sum: x must be a float tensor, got i32');
  });
});
