import { describe, expect, it } from 'vitest';
import {
  contiguous,
  type LinearOperands,
  type LowRank,
  linear,
  linearGroup,
  permute,
} from '../../lib/ops/index.ts';
import type { Tensor } from '../../lib/tensor.ts';
import { expectClose, kFloatTypes, roundingOf, values } from '../support/compare.ts';
import { gradcheck, randomTensor } from '../support/gradcheck.ts';

/** The definition y = x w^T + bias + sum of scale * (xa a^T) b^T in plain loops. */
function definition(
  x: Tensor,
  { weight, bias, lowRank = [] }: LinearOperands,
  adapterInput: Tensor = x,
): Float64Array {
  const [outs, ins] = weight.shape as [number, number];
  const rows = x.size / ins;
  const [vx, va, vw] = [values(x), values(adapterInput), values(weight)];
  const y = new Float64Array(rows * outs);
  const dot = (p: Float64Array, i: number, q: Float64Array, j: number, length: number) => {
    let sum = 0;
    for (let k = 0; k < length; ++k)
      sum += (p[i * length + k] as number) * (q[j * length + k] as number);
    return sum;
  };
  const vb = bias ? values(bias) : null;
  for (let n = 0; n < rows; ++n) {
    for (let o = 0; o < outs; ++o) {
      y[n * outs + o] = dot(vx, n, vw, o, ins) + (vb ? (vb[o] as number) : 0);
    }
  }
  for (const { a, b, scale = 1 } of lowRank) {
    const rank = a.shape[0] as number;
    const [fa, fb] = [values(a), values(b)];
    const u = Float64Array.from({ length: rows * rank }, (_, i) =>
      dot(va, Math.floor(i / rank), fa, i % rank, ins),
    );
    for (let n = 0; n < rows; ++n) {
      for (let o = 0; o < outs; ++o) {
        y[n * outs + o] = (y[n * outs + o] as number) + scale * dot(u, n, fb, o, rank);
      }
    }
  }
  return y;
}

type FloatType = (typeof kFloatTypes)[number];
const masterOf = (dtype: FloatType) => (dtype === 'f64' ? 'f64' : 'f32');

function pair(ins: number, outs: number, rank: number, scale: number, dtype: FloatType): LowRank {
  return {
    a: randomTensor([rank, ins], { seed: rank, dtype: masterOf(dtype) }),
    b: randomTensor([outs, rank], { seed: rank + 1, dtype: masterOf(dtype) }),
    scale,
  };
}

function group(
  ins: number,
  outs: readonly number[],
  dtype: FloatType,
  frozen: boolean,
): LinearOperands[] {
  return outs.map((out, i) => {
    const weight = randomTensor([out, ins], { seed: 20 + i, dtype });
    return {
      weight: frozen ? weight.freeze() : weight,
      bias: i === 1 ? randomTensor([out], { seed: 30, dtype }) : null,
      lowRank: i === 2 ? [] : [pair(ins, out, 4 + i, 0.5, dtype), pair(ins, out, 3, -0.5, dtype)],
    };
  });
}

describe('linear', () => {
  for (const dtype of kFloatTypes) {
    for (const frozen of [true, false]) {
      it(`equals its definition in ${dtype}, weights ${frozen ? 'frozen' : 'free'}`, () => {
        const tolerance = roundingOf(dtype) + (dtype === 'f64' ? 1e-13 : 4e-5);
        for (const [rows, ins] of [
          [1, 31],
          [33, 64],
          [123, 33],
        ] as const) {
          const x = randomTensor([rows, ins], { seed: 9, dtype });
          const linears = group(ins, [33, 31, 64], dtype, frozen);
          for (let pass = 0; pass < 2; ++pass) {
            linearGroup(x, linears).forEach((y, i) => {
              expect(y.dtype).toBe(dtype);
              expectClose(y, definition(x, linears[i] as LinearOperands), tolerance);
            });
          }
        }
      });
    }
  }

  it('has the gradient of its definition, with every operand free', () => {
    const [w1, w2] = [randomTensor([4, 5], { seed: 2 }), randomTensor([3, 5], { seed: 3 })];
    const bias = randomTensor([4], { seed: 4 });
    const [a, b] = [randomTensor([2, 5], { seed: 5 }), randomTensor([4, 2], { seed: 6 })];
    const [a2, b2] = [randomTensor([6, 5], { seed: 7 }), randomTensor([3, 6], { seed: 8 })];
    gradcheck(
      (...t) => {
        const [x, p, q, r, c, d, e, f] = t as Tensor[] as [
          Tensor,
          Tensor,
          Tensor,
          Tensor,
          Tensor,
          Tensor,
          Tensor,
          Tensor,
        ];
        return linearGroup(x, [
          { weight: p, bias: r, lowRank: [{ a: c, b: d, scale: 2 }] },
          { weight: q, lowRank: [{ a: e, b: f, scale: -0.5 }] },
        ]);
      },
      [randomTensor([2, 3, 5], { seed: 1 }), w1, w2, bias, a, b, a2, b2],
    );
  });

  it('has the gradient of its definition with a separate input of the adapter', () => {
    const weight = randomTensor([4, 5], { seed: 2 }).freeze();
    gradcheck(
      (...t) => {
        const [x, xa, a, b] = t as [Tensor, Tensor, Tensor, Tensor];
        return linear(x, weight, { lowRank: [{ a, b, scale: 3 }], adapterInput: xa });
      },
      [
        [7, 5],
        [7, 5],
        [2, 5],
        [4, 2],
      ].map((shape, i) => randomTensor(shape, { seed: i + 1 })),
    );
    const x = randomTensor([7, 5], { seed: 1 });
    const xa = randomTensor([7, 5], { seed: 2 });
    const spec = { weight, lowRank: [pair(5, 4, 2, 1.5, 'f64')] };
    expectClose(linear(x, weight, { ...spec, adapterInput: xa }), definition(x, spec, xa), 1e-13);
  });

  it('gives frozen operands no gradient, and trained ones the right one', () => {
    for (const dtype of ['f32', 'bf16'] as const) {
      const x = randomTensor([6, 8], { seed: 1, dtype });
      const weight = randomTensor([4, 8], { seed: 2, dtype }).freeze();
      const trained = pair(8, 4, 2, 0.25, dtype);
      trained.a.requiresGrad = true;
      trained.b.requiresGrad = true;
      const y = linear(x, weight, { lowRank: [trained] });
      y.backward(randomTensor([6, 4], { seed: 3, dtype }));
      expect(x.grad).toBeNull();
      expect(weight.grad).toBeNull();
      expect(trained.a.grad?.shape).toEqual([2, 8]);
      expect(trained.a.grad?.dtype).toBe('f32');
      expect(trained.b.grad?.shape).toEqual([4, 2]);
    }
  });

  it('gives no gradient for an output that was not used', () => {
    const x = randomTensor([3, 4], { seed: 1, requiresGrad: true });
    const used = pair(4, 2, 2, 1, 'f64');
    const unused = pair(4, 2, 2, 1, 'f64');
    for (const { a, b } of [used, unused]) for (const t of [a, b]) t.requiresGrad = true;
    const weight = randomTensor([2, 4], { seed: 2 }).freeze();
    const [y] = linearGroup(x, [
      { weight, lowRank: [used] },
      { weight, lowRank: [unused] },
    ]);
    (y as Tensor).backward(randomTensor([3, 2], { seed: 3 }));
    expect(values(used.b.grad as Tensor).some((v) => v !== 0)).toBe(true);
    const left = unused.b.grad;
    expect(left === null || values(left).every((v) => v === 0)).toBe(true);
    expect(x.grad?.shape).toEqual([3, 4]);
  });

  it('is bit for bit the base alone where a frozen pair cancels the trained one', () => {
    for (const dtype of kFloatTypes) {
      const x = randomTensor([33, 64], { seed: 1, dtype });
      const weight = randomTensor([31, 64], { seed: 2, dtype }).freeze();
      const p = pair(64, 31, 8, 2, dtype);
      const both = linear(x, weight, { lowRank: [p, { ...p, scale: -2 }] });
      expect(values(both)).toEqual(values(linear(x, weight)));
    }
  });

  it('never rounds the masters to bf16', () => {
    const x = randomTensor([64, 96], { seed: 1, dtype: 'bf16' });
    const weight = randomTensor([32, 96], { seed: 2, dtype: 'bf16' });
    const p = pair(96, 32, 8, 1, 'bf16');
    p.a.requiresGrad = true;
    p.b.requiresGrad = true;
    const dy = randomTensor([64, 32], { seed: 4, dtype: 'bf16' });
    linear(x, weight, { lowRank: [p] }).backward(dy);
    // db = dy^T (x a^T) from the exact values; with a or u rounded to bf16 it would have an error of 2^-9.
    const [vx, va, vd] = [values(x), values(p.a), values(dy)];
    const want = new Float64Array(32 * 8);
    for (let n = 0; n < 64; ++n) {
      for (let r = 0; r < 8; ++r) {
        let u = 0;
        for (let k = 0; k < 96; ++k) u += (vx[n * 96 + k] as number) * (va[r * 96 + k] as number);
        for (let o = 0; o < 32; ++o) {
          want[o * 8 + r] = (want[o * 8 + r] as number) + (vd[n * 32 + o] as number) * u;
        }
      }
    }
    const scale = Math.max(...Array.from(want, Math.abs));
    expectClose(p.b.grad as Tensor, want, 2 ** -14 * scale);
  });

  it('accepts a single row with the strides of a column', () => {
    const column = randomTensor([6, 1], { dtype: 'f32' });
    const x = randomTensor([5, 6], { dtype: 'f32', seed: 2 });
    const row = permute(column, [1, 0]);
    expectClose(linear(x, row), Array.from(values(linear(x, contiguous(row)))), 0);
  });

  it('refuses bad arguments by name', () => {
    const x = randomTensor([2, 6], { dtype: 'f32' });
    const w = randomTensor([4, 6], { dtype: 'f32' });
    const f32 = (...shape: number[]) => randomTensor(shape, { dtype: 'f32' });
    expect(() => linear(x, f32(4, 5))).toThrow('linear: weight[0] must be (O,I)=(4,6), got (4,5)');
    expect(() => linear(x, randomTensor([4, 6]))).toThrow('linear: weight[0] must be f32, got f64');
    expect(() => linear(x, w, { bias: f32(5) })).toThrow(
      'linear: bias[0] must be (O)=(4), got (5)',
    );
    expect(() => linear(x, w, { lowRank: [{ a: f32(2, 5), b: f32(4, 2) }] })).toThrow(
      'linear: a[0] must be (R,I)=(2,6), got (2,5)',
    );
    expect(() => linear(x, w, { lowRank: [{ a: f32(2, 6), b: f32(4, 3) }] })).toThrow(
      'linear: b[0] must be (O,R)=(4,2), got (4,3)',
    );
    expect(() => linear(x, w, { lowRank: [{ a: f32(2, 6), b: randomTensor([4, 2]) }] })).toThrow(
      'linear: b[0] must be f32, got f64',
    );
    expect(() => linear(x, w, { adapterInput: f32(3, 6) })).toThrow('linear: adapterInput must be');
    expect(() =>
      linear(x, w, { lowRank: [{ a: f32(2, 6), b: f32(4, 2), scale: Number.NaN }] }),
    ).toThrow('must be finite');
    expect(() => linearGroup(x, [])).toThrow('linear: no weight given');
  });
});
