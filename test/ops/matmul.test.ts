import { describe, expect, it } from 'vitest';
import { matmul, ones, sum } from '../../lib/ops/index.ts';
import { type Tensor, tensor } from '../../lib/tensor.ts';
import { expectClose, kFloatTypes, roundingOf, values } from '../support/compare.ts';
import { gradcheck, randomTensor } from '../support/gradcheck.ts';

/** The definition in plain loops, with broadcast batch dimensions and optional transposes. */
function definition(a: Tensor, b: Tensor, transposeA: boolean, transposeB: boolean): Float64Array {
  const [va, vb] = [values(a), values(b)];
  const [ra, ca] = a.shape.slice(-2) as [number, number];
  const [rb, cb] = b.shape.slice(-2) as [number, number];
  const [m, k] = transposeA ? [ca, ra] : [ra, ca];
  const n = transposeB ? rb : cb;
  const batchA = a.shape.slice(0, -2);
  const batchB = b.shape.slice(0, -2);
  const rank = Math.max(batchA.length, batchB.length);
  const pad = (s: readonly number[]) => [...Array<number>(rank - s.length).fill(1), ...s];
  const [pa, pb] = [pad(batchA), pad(batchB)];
  const batch = pa.map((e, i) => Math.max(e, pb[i] as number));
  const count = batch.reduce((p, e) => p * e, 1);
  const y = new Float64Array(count * m * n);
  for (let z = 0; z < count; ++z) {
    let [rest, za, zb, sa, sb] = [z, 0, 0, 1, 1];
    for (let d = rank - 1; d >= 0; --d) {
      const at = rest % (batch[d] as number);
      rest = Math.floor(rest / (batch[d] as number));
      za += (pa[d] === 1 ? 0 : at) * sa;
      zb += (pb[d] === 1 ? 0 : at) * sb;
      sa *= pa[d] as number;
      sb *= pb[d] as number;
    }
    for (let i = 0; i < m; ++i) {
      for (let j = 0; j < n; ++j) {
        let sum = 0;
        for (let q = 0; q < k; ++q) {
          const x = va[za * ra * ca + (transposeA ? q * ca + i : i * ca + q)] as number;
          sum += x * (vb[zb * rb * cb + (transposeB ? j * cb + q : q * cb + j)] as number);
        }
        y[(z * m + i) * n + j] = sum;
      }
    }
  }
  return y;
}

interface Case {
  a: number[];
  b: number[];
  transposeA?: boolean;
  transposeB?: boolean;
}
const kCases: Case[] = [
  { a: [1, 1], b: [1, 1] },
  { a: [33, 31], b: [31, 123] },
  { a: [31, 33], b: [31, 5], transposeA: true },
  { a: [1, 31], b: [33, 31], transposeB: true },
  { a: [31, 4], b: [3, 31], transposeA: true, transposeB: true },
  { a: [2, 3, 5, 7], b: [7, 6] },
  { a: [2, 3, 5, 7], b: [6, 7], transposeB: true },
  { a: [2, 3, 7, 5], b: [7, 6], transposeA: true },
  { a: [5, 7], b: [4, 7, 3] },
  { a: [2, 1, 5, 7], b: [3, 7, 2] },
  { a: [2, 3, 5, 7], b: [2, 3, 6, 7], transposeB: true },
];

describe('matmul', () => {
  for (const dtype of kFloatTypes) {
    it(`equals its definition in ${dtype}`, () => {
      for (const { a, b, transposeA = false, transposeB = false } of kCases) {
        const [x, y] = [randomTensor(a, { seed: 1, dtype }), randomTensor(b, { seed: 2, dtype })];
        const z = matmul(x, y, { transposeA, transposeB });
        const want = definition(x, y, transposeA, transposeB);
        expect(z.dtype).toBe(dtype);
        expect(z.size).toBe(want.length);
        expectClose(z, want, roundingOf(dtype) + (dtype === 'f64' ? 1e-14 : 1e-5));
      }
    });
  }

  it('has the gradient of its definition', () => {
    for (const { a, b, ...options } of kCases) {
      gradcheck(
        (x, y) => matmul(x as Tensor, y as Tensor, options),
        [randomTensor(a, { seed: 3 }), randomTensor(b, { seed: 4 })],
      );
    }
  });

  it('gives the gradient of one operand where the other is frozen', () => {
    const a = randomTensor([3, 4], { seed: 5, requiresGrad: true });
    const b = randomTensor([4, 2], { seed: 6 });
    const y = matmul(a, b);
    y.backward(randomTensor([3, 2], { seed: 7 }));
    expect(a.grad?.shape).toEqual([3, 4]);
    expect(b.grad).toBeNull();
  });

  it('is zero for an inner dimension of 0', () => {
    const y = matmul(
      tensor(new Float32Array(0), { shape: [2, 0] }),
      tensor(new Float32Array(0), { shape: [0, 3] }),
    );
    expect(Array.from(values(y))).toEqual([0, 0, 0, 0, 0, 0]);
  });

  it('refuses bad arguments by name', () => {
    const f32 = (...shape: number[]) => randomTensor(shape, { dtype: 'f32' });
    expect(() => matmul(f32(2, 3), f32(2, 3))).toThrow(
      'matmul: inner dimensions differ, op(a) is (...,M,K)=(2,3), op(b) is (...,K,N)=(2,3)',
    );
    expect(() => matmul(f32(3), f32(3, 2))).toThrow('matmul: a needs at least two dimensions');
    expect(() => matmul(f32(2, 2, 3), f32(3, 3, 2))).toThrow('batch dimensions do not broadcast');
    expect(() => matmul(f32(2, 3), randomTensor([3, 2]))).toThrow('matmul: b must be f32, got f64');
  });
});

describe('matmul of an empty batch', () => {
  it.each([
    { a: [0, 2, 3], b: [1, 3, 4] },
    { a: [1, 2, 3], b: [0, 3, 4] },
    { a: [0, 2, 3], b: [3, 4] },
    { a: [2, 3], b: [2, 0, 3, 4] },
    { a: [3, 2, 0], b: [0, 4] },
    { a: [1, 2, 0], b: [0, 0, 4] },
  ])('($a) x ($b): the gradients have the operands’ shapes and are zero', ({ a, b }) => {
    const [x, y] = [tensor(new Float32Array(a.reduce((p, e) => p * e)), { shape: a }), ones(b)];
    x.requiresGrad = true;
    y.requiresGrad = true;
    sum(matmul(x, y)).backward();
    for (const leaf of [x, y]) {
      expect(leaf.grad?.shape).toEqual(leaf.shape);
      expect(values(leaf.grad as Tensor).every((value) => value === 0)).toBe(true);
    }
  });
});
