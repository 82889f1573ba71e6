import { describe, expect, it } from 'vitest';
import {
  embedding,
  gather,
  indexSelect,
  scatterAdd,
  sum,
  topK,
  transpose,
} from '../../lib/ops/index.ts';
import { type Tensor, tensor } from '../../lib/tensor.ts';
import { expectClose, kFloatTypes, roundingOf, values } from '../support/compare.ts';
import { kTestDevice } from '../support/device.ts';
import { gradcheck, randomTensor } from '../support/gradcheck.ts';

const ids = (n: number, limit: number): Int32Array =>
  Int32Array.from({ length: n }, (_, i) => (i * 7 + 3) % limit);

describe('embedding and indexSelect', () => {
  it('read rows in every dtype, with i32 and i64 ids of any shape', () => {
    for (const dtype of kFloatTypes) {
      for (const channels of [1, 31, 33, 123]) {
        const weight = randomTensor([13, channels], { seed: 1, dtype });
        const rows = ids(6, 13);
        const data = values(weight);
        const want = Array.from(rows).flatMap((r) =>
          Array.from(data.slice(r * channels, (r + 1) * channels)),
        );
        const y = embedding(weight, tensor(rows, { shape: [2, 3] }));
        expect(y.shape).toEqual([2, 3, channels]);
        expectClose(y, want, 0);
        expectClose(embedding(weight, tensor(BigInt64Array.from(rows, BigInt))), want, 0);
        expectClose(indexSelect(weight, tensor(rows)), want, 0);
      }
    }
    const deep = randomTensor([4, 2, 3]);
    expect(indexSelect(deep, tensor(Int32Array.of(3, 0))).shape).toEqual([2, 2, 3]);
  });

  it('sum the gradients of repeated rows, in f32 for a bf16 weight', () => {
    gradcheck((w) => embedding(w as Tensor, tensor(ids(9, 5))), [randomTensor([5, 33])]);
    gradcheck(
      (x) => indexSelect(transpose(x as Tensor), tensor(ids(9, 4))),
      [randomTensor([3, 4])],
    );
    const weight = randomTensor([2, 3], { dtype: 'bf16', requiresGrad: true });
    sum(embedding(weight, tensor(new Int32Array(1000)))).backward();
    expect(weight.grad?.dtype).toBe('f32');
    expectClose(weight.grad as Tensor, [1000, 1000, 1000, 0, 0, 0], 0);
  });

  it('name a bad index at the next read, and bad arguments at once', () => {
    const weight = randomTensor([4, 3]);
    expect(() => embedding(weight, tensor(Int32Array.of(1, 4))).dataSync()).toThrow(
      // A device reports it at the next sync, with the name of its kernel.
      `${kTestDevice === 'cpu' ? 'embedding' : 'select_rows'}: index 4 at position 1 is outside [0,4)`,
    );
    expect(() => indexSelect(weight, tensor(Int32Array.of(-1))).dataSync()).toThrow(
      'index -1 at position 0',
    );
    expect(values(weight).length).toBe(12); // the stream goes on
    expect(() => embedding(weight, tensor([1]))).toThrow(
      'embedding: ids must be i32 or i64, got f32',
    );
    expect(() => embedding(randomTensor([4]), tensor(Int32Array.of(1)))).toThrow(
      'embedding: weight (V,C) must have 2 dimensions, got (4)',
    );
  });
});

describe('gather and scatterAdd', () => {
  const shape = [3, 5, 7];
  const extents = (axis: number, k: number) => shape.map((n, d) => (d === axis ? k : n));
  const indexOf = (axis: number, k: number): Tensor => {
    const size = extents(axis, k).reduce((a, b) => a * b, 1);
    return tensor(ids(size, shape[axis] as number), { shape: extents(axis, k) });
  };
  /** The flat index in x that element i of an index along `axis` refers to. */
  const target = (i: number, index: Float64Array, axis: number, k: number): number => {
    const inner = shape.slice(axis + 1).reduce((a, b) => a * b, 1);
    const a = Math.floor(i / (k * inner));
    return (a * (shape[axis] as number) + (index[i] as number)) * inner + (i % inner);
  };

  for (const axis of [0, 1, 2]) {
    it(`follow their definition along axis ${axis}, in every dtype, with gradients`, () => {
      for (const dtype of kFloatTypes) {
        for (const k of [1, 4]) {
          const x = randomTensor(shape, { seed: 1, dtype });
          const index = indexOf(axis, k);
          const at = values(index);
          const data = values(x);
          expectClose(
            gather(x, index, { axis }),
            at.map((_, i) => data[target(i, at, axis, k)] as number),
            0,
          );
          const source = randomTensor(extents(axis, k), { seed: 2, dtype });
          const want = data.slice();
          values(source).forEach((v, i) => {
            want[target(i, at, axis, k)] = (want[target(i, at, axis, k)] as number) + v;
          });
          expectClose(scatterAdd(x, index, source, { axis }), want, 2 * roundingOf(dtype) + 1e-7);
        }
      }
      const x = randomTensor(shape, { seed: 3 });
      const source = randomTensor(extents(axis, 4), { seed: 4 });
      gradcheck((x) => gather(x as Tensor, indexOf(axis, 4), { axis }), [x]);
      gradcheck(
        (x, s) => scatterAdd(x as Tensor, indexOf(axis, 4), s as Tensor, { axis }),
        [x, source],
      );
    });
  }

  it('refuse bad arguments by name', () => {
    const x = randomTensor([2, 3]);
    const index = tensor(new Int32Array(4), { shape: [2, 2] });
    expect(() => gather(x, index, { axis: 0 })).toThrow(
      'gather: index (2,2) must agree with (2,3) in every axis but 0',
    );
    expect(() => scatterAdd(x, index, randomTensor([2, 3]))).toThrow('scatter_add: source must be');
    expect(() => gather(x, tensor(Int32Array.of(9, 0), { shape: [2, 1] })).dataSync()).toThrow(
      'index 9 at position 0',
    );
  });
});

describe('topK', () => {
  it('sorts in descending order, equal values by position, for small and large k', () => {
    for (const dtype of kFloatTypes) {
      for (const [width, k] of [
        [1, 1],
        [31, 5],
        [123, 123],
        [200, 100],
      ] as const) {
        const raw = values(randomTensor([3, width], { seed: 5 })).map((v) => Math.round(v * 10));
        const x = tensor(raw, { shape: [3, width], dtype });
        const { values: top, indices } = topK(x, k);
        const order = [0, 1, 2].flatMap((n) =>
          Array.from({ length: width }, (_, c) => c)
            .sort(
              (a, b) => (raw[n * width + b] as number) - (raw[n * width + a] as number) || a - b,
            )
            .slice(0, k),
        );
        expectClose(indices, order, 0);
        expectClose(
          top,
          order.map((c, i) => raw[Math.floor(i / k) * width + c] as number),
          0,
        );
      }
    }
    const odd = topK(tensor([1, NaN, Infinity]), 2);
    expect(Array.from(values(odd.indices))).toEqual([1, 2]);
    gradcheck((x) => topK(x as Tensor, 3).values, [randomTensor([2, 3, 31])]);
  });

  it('refuses bad arguments by name', () => {
    expect(() => topK(randomTensor([2, 3]), 4)).toThrow(
      'top_k: k must be in [0,3] for x (2,3), got 4',
    );
  });
});
