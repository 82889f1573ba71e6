import { describe, expect, it } from 'vitest';
import {
  add,
  add_,
  arange,
  concat,
  contiguous,
  embedding,
  expand,
  gather,
  indexSelect,
  matmul,
  mul,
  ones,
  permute,
  reshape,
  slice,
  split,
  squeeze,
  stack,
  sum,
  transpose,
  unsqueeze,
  zeros,
} from '../../lib/ops/index.ts';
import { type DType, type Tensor, tensor } from '../../lib/tensor.ts';
import { expectClose, values } from '../support/compare.ts';
import { kTestDevice } from '../support/device.ts';
import { gradcheck, randomTensor } from '../support/gradcheck.ts';

const kTypes: DType[] = ['f64', 'f32', 'bf16', 'f16', 'i32', 'i64', 'u8'];

/** The numbers 0 to 99 in turns, which are exact in every dtype. */
function counting(shape: number[], dtype: DType): Tensor {
  const size = shape.reduce((a, b) => a * b, 1);
  return tensor(
    Float64Array.from({ length: size }, (_, i) => i % 100),
    { shape, dtype },
  );
}

/** The value of x at from(index) for every index of `shape`. */
function pick(x: Tensor, shape: readonly number[], from: (index: number[]) => number[]): number[] {
  const data = values(x);
  const out: number[] = [];
  const visit = (index: number[]): void => {
    if (index.length < shape.length) {
      for (let i = 0; i < (shape[index.length] as number); ++i) visit([...index, i]);
      return;
    }
    const source = from(index);
    out.push(data[source.reduce((at, v, d) => at * (x.shape[d] as number) + v, 0)] as number);
  };
  visit([]);
  return out;
}

describe('shapes', () => {
  it('reshape keeps the order, infers one extent, and copies tensors that are not contiguous', () => {
    for (const dtype of kTypes) {
      const x = counting([3, 8, 5], dtype);
      expect(reshape(x, [-1, 10]).shape).toEqual([12, 10]);
      expectClose(reshape(x, [12, 10]), values(x), 0);
      const turned = transpose(x);
      expectClose(reshape(turned, [120]), values(turned), 0);
    }
    gradcheck((x) => reshape(transpose(x as Tensor), [10, -1]), [randomTensor([3, 4, 5])]);
  });

  it('permute and transpose move axes', () => {
    for (const dtype of kTypes) {
      const x = counting([31, 3, 33], dtype);
      for (const order of [
        [2, 0, 1],
        [1, 0, 2],
        [0, 2, 1],
        [2, 1, 0],
      ]) {
        const y = permute(x, order);
        const want = pick(x, y.shape, (index) =>
          order.map((_, d) => index[order.indexOf(d)] as number),
        );
        expectClose(y, want, 0);
        expectClose(contiguous(y), want, 0);
      }
    }
    gradcheck((x) => mul(permute(x as Tensor, [2, 0, 1]), 2), [randomTensor([3, 4, 5])]);
    gradcheck((x) => contiguous(transpose(x as Tensor, 0, 2)), [randomTensor([3, 4, 5])]);
  });

  it('expand repeats values, and sums their gradients', () => {
    const x = counting([3, 1], 'f32');
    expectClose(
      expand(x, [2, 3, 4]),
      [0, 1, 2, 0, 1, 2].flatMap((v) => [v, v, v, v]),
      0,
    );
    gradcheck((x) => expand(x as Tensor, [2, 3, 4]), [randomTensor([3, 1])]);
    gradcheck((x) => expand(x as Tensor, [1, 1, 3]), [randomTensor([3])]);
  });

  it('unsqueeze and squeeze are inverse', () => {
    const x = counting([2, 3], 'f32');
    expect(unsqueeze(x, 0).shape).toEqual([1, 2, 3]);
    expect(unsqueeze(x, -1).shape).toEqual([2, 3, 1]);
    expect(squeeze(unsqueeze(x, 1), 1).shape).toEqual([2, 3]);
    expect(() => squeeze(x, 0)).toThrow('squeeze: axis 0 of (2,3) must have extent 1, got 2');
  });

  it('slice follows Array.prototype.slice on any axis', () => {
    for (const dtype of kTypes) {
      const x = counting([5, 7], dtype);
      for (const [start, stop, step] of [
        [0, 7, 1],
        [2, 5, 1],
        [-3, -1, 1],
        [1, 7, 3],
        [4, 2, 1],
        [0, 99, 2],
      ] as const) {
        const columns = [0, 1, 2, 3, 4, 5, 6].slice(start, stop).filter((_, i) => i % step === 0);
        const y = slice(x, 1, { start, stop, step });
        expect(y.shape).toEqual([5, columns.length]);
        expectClose(
          y,
          pick(x, y.shape, ([r, c]) => [r as number, columns[c as number] as number]),
          0,
        );
      }
    }
    gradcheck((x) => slice(x as Tensor, 0, { start: 1, step: 2 }), [randomTensor([6, 4])]);
    gradcheck((x) => slice(transpose(x as Tensor), 0, { start: -2 }), [randomTensor([6, 4])]);
    gradcheck(
      (x) => [slice(x as Tensor, 0, { stop: 3 }), slice(x as Tensor, 0, { start: 2 })],
      [randomTensor([5, 3])],
    );
  });

  it('split returns views whose gradients are joined, with zeros for an unused part', () => {
    const x = randomTensor([4, 7], { requiresGrad: true });
    const parts = split(x, [2, 4, 1]);
    expect(parts.map((p) => p.shape)).toEqual([
      [4, 2],
      [4, 4],
      [4, 1],
    ]);
    expectClose(
      parts[1] as Tensor,
      pick(x, [4, 4], ([r, c]) => [r as number, (c as number) + 2]),
      0,
    );
    sum(mul(parts[1] as Tensor, 3)).backward();
    expectClose(
      x.grad as Tensor,
      Array.from({ length: 28 }, (_, i) => (i % 7 >= 2 && i % 7 < 6 ? 3 : 0)),
      0,
    );
    gradcheck((x) => split(x as Tensor, [1, 0, 3], 0), [randomTensor([4, 3])]);
  });

  it('concat and stack join along an axis', () => {
    for (const dtype of kTypes) {
      const parts = [counting([2, 3], dtype), counting([2, 1], dtype), counting([2, 0], dtype)];
      expectClose(concat(parts, 1), [0, 1, 2, 0, 3, 4, 5, 1], 0);
      const [a, b] = [counting([2], dtype), counting([2], dtype)];
      expectClose(stack([a, b], 1), [0, 0, 1, 1], 0);
      expect(stack([a, b, a]).shape).toEqual([3, 2]);
    }
    const inputs = [randomTensor([3, 2], { seed: 1 }), randomTensor([3, 4], { seed: 2 })];
    gradcheck((a, b) => concat([a as Tensor, b as Tensor, a as Tensor], -1), inputs);
    gradcheck(
      (a) => stack([a as Tensor, transpose(transpose(a as Tensor))], -1),
      [inputs[0] as Tensor],
    );
  });

  it('an in-place write through a view changes the tensor', () => {
    const x = counting([2, 3], 'f32');
    add_(slice(x, 0, { start: 1 }), tensor([[10, 10, 10]]));
    expectClose(x, [0, 1, 2, 13, 14, 15], 0);
  });

  it('refuses bad arguments by name', () => {
    const x = randomTensor([2, 3]);
    expect(() => reshape(x, [4, -1])).toThrow('reshape: (2,3) does not fit (4,-1)');
    expect(() => reshape(x, [-1, -1])).toThrow('reshape: at most one extent may be -1');
    expect(() => permute(x, [0])).toThrow('permute: (2,3) needs 2 axes, got 1');
    expect(() => permute(x, [0, 0])).toThrow('permute: axis 0 occurs twice');
    expect(() => expand(x, [2, 4])).toThrow('expand: the shapes (2,3) and (2,4) do not broadcast');
    expect(() => expand(x, [3])).toThrow('expand: (2,3) does not stretch to (3)');
    expect(() => slice(x, 1, { step: 0 })).toThrow('slice: step must be >= 1, got 0');
    expect(() => split(x, [1, 1])).toThrow('split: the sizes add up to 2, axis 1 of (2,3) has 3');
    expect(() => concat([])).toThrow('concat: no tensor given');
    expect(() => concat([x, randomTensor([2, 4])])).toThrow(
      'concat: every part must be (2,3), got (2,4)',
    );
    expect(() => concat([x, randomTensor([2, 3], { dtype: 'f32' })])).toThrow(
      'must be f64, got f32',
    );
    expect(() => transpose(x, 0, 2)).toThrow(
      'transpose: axis must be -2 to 1 for 2 dimensions, got 2',
    );
  });

  it('refuses sizes whose product or sum is beyond 2^53 - 1', () => {
    const huge = 2 ** 62;
    const four = randomTensor([4]);
    expect(() => split(four, [huge, huge, huge, huge, 4], 0)).toThrow('split: the sizes add up to');
    // 2^64 + 4 elements, which wrap around to the 4 of the tensor.
    expect(() => reshape(four, [4, 2147418113, 2147549185])).toThrow('is too large');
    expect(() => reshape(four, [-1, 2147418113, 2147549185])).toThrow('is too large');
    expect(() => expand(randomTensor([1]), [huge])).toThrow('is too large');
    expect(() => sum(expand(randomTensor([1, 4]), [huge, 4]), { axis: 0 })).toThrow('is too large');
    const long = expand(randomTensor([1]), [2 ** 52]);
    expect(() => concat(Array.from({ length: 300 }, () => long))).toThrow('is too large');
  });

  it('refuses sizes whose product wraps around to 0, also beside an extent of 0', () => {
    const [half, wide] = [2 ** 32, 2 ** 40];
    const empty = zeros([0]);
    expect(() => expand(ones([1, 1]), [wide, wide])).toThrow('is too large');
    expect(() => reshape(empty, [half, half])).toThrow('is too large');
    expect(() => reshape(empty, [0, half, half])).toThrow('is too large');
    expect(() => zeros([0, half, half])).toThrow('is too large');
    expect(() => zeros([half, half, 0])).toThrow('is too large');
    expect(() => tensor([], { shape: [half, half] })).toThrow('is too large');
    expect(() => expand(zeros([1, 0, 1]), [half, 0, half])).toThrow('is too large');
    expect(() => matmul(zeros([wide, 0]), zeros([0, wide]))).toThrow('is too large');
    expect(() => add(zeros([wide, 0, 1]), expand(ones([1]), [1, 1, wide]))).toThrow('is too large');
    const ids = tensor(new Int32Array(0));
    expect(() => indexSelect(expand(zeros([1, 0]), [wide, 0]), ids)).not.toThrow();
    expect(() =>
      embedding(zeros([0, half]), tensor(new Int32Array(0), { shape: [0, half] })),
    ).toThrow('is too large');
    expect(() =>
      gather(zeros([0, half]), zeros([half, half], { dtype: 'i32' }), { axis: 0 }),
    ).toThrow('is too large');
    expect(() => arange(0, 1e300)).toThrow('arange: from 0 to 1e+300 by 1 are more than 2^53 - 1');
    expect(() => arange(-1e308, 1e308)).toThrow('more than 2^53 - 1');
    expect(() => zeros([1e300])).toThrow('expected an integer, got 1e+300');
    expect(() => zeros([Number.NaN])).toThrow('expected an integer, got NaN');
  });

  it('counts the elements of an expanded view exactly, and reports out of memory', () => {
    const most = expand(ones([1, 1]), [2 ** 26, 2 ** 27 - 1]);
    expect(most.size).toBe(2 ** 53 - 2 ** 26);
    expect(expand(ones([1]), [Number.MAX_SAFE_INTEGER]).size).toBe(Number.MAX_SAFE_INTEGER);
    expect(() => expand(ones([1]), [2 ** 53])).toThrow('is too large');
    expect(() => most.dataSync()).toThrow(
      `${2 ** 53 - 2 ** 26} elements are more than a typed array of f32 takes here`,
    );
    if (kTestDevice !== 'cpu') return; // an emulated device has no such memory to refuse
    for (const wide of [most, expand(ones([1, 1]), [2 ** 22, 2 ** 22])]) {
      expect(() => sum(wide).itemSync()).toThrow('out of memory');
    }
    const long = expand(ones([1, 1]), [1, 2 ** 44]);
    expect(() => matmul(long, long, { transposeB: true }).itemSync()).toThrow('out of memory');
    expect(sum(expand(ones([1, 1]), [2 ** 10, 2 ** 11])).itemSync()).toBe(2 ** 21);
  });

  it('slices by any step', () => {
    expect(values(slice(counting([30], 'i32'), 0, { step: 2 ** 63 - 1024 }))).toEqual(
      Float64Array.of(0),
    );
    expect(slice(counting([30], 'i32'), 0, { start: 5, stop: 5, step: 2 ** 62 }).shape).toEqual([
      0,
    ]);
  });
});
