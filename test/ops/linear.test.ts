import { describe, expect, it } from 'vitest';
import {
  add,
  concat,
  contiguous,
  full,
  type LinearOperands,
  type LowRank,
  linear,
  linearGroup,
  mul,
  type PairForm,
  permute,
  reshape,
  slice,
} from '../../lib/ops/index.ts';
import { batchInvariant, memoryStats, synchronize } from '../../lib/runtime.ts';
import { type Tensor, tensor } from '../../lib/tensor.ts';
import { collectGarbage } from '../support/collect_garbage.ts';
import { expectClose, kFloatTypes, roundingOf, values } from '../support/compare.ts';
import { gradcheck, randomTensor } from '../support/gradcheck.ts';

/** The definition y = outputScale * (x w^T + xa c^T + sum of scale * (xa a^T) b^T less that of its start) + bias in plain loops. */
function definition(
  x: Tensor,
  { weight, bias, outputScale, weightChange, lowRank = [] }: LinearOperands,
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
  const vc = weightChange ? values(weightChange) : null;
  for (let n = 0; n < rows; ++n) {
    for (let o = 0; o < outs; ++o) {
      y[n * outs + o] = dot(vx, n, vw, o, ins) + (vc === null ? 0 : dot(va, n, vc, o, ins));
    }
  }
  const products = lowRank.flatMap(({ a, b, scale = 1, start }) => [
    { a, b, scale },
    ...(start ? [{ ...start, scale: -scale }] : []),
  ]);
  for (const { a, b, scale } of products) {
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
  const scales = outputScale ? values(outputScale) : null;
  y.forEach((sum, i) => {
    y[i] = (scales?.[i % outs] ?? 1) * sum + (vb?.[i % outs] ?? 0);
  });
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

/** A part that has moved away from its start. */
function started(ins: number, outs: number, dtype: FloatType): LowRank {
  const start = pair(ins, outs, 3, 1, dtype);
  const moved = (t: Tensor, seed: number): Tensor =>
    add(t, mul(randomTensor(t.shape, { seed, dtype: masterOf(dtype) }), 0.05));
  return { a: moved(start.a, 50), b: moved(start.b, 51), scale: -0.5, start };
}

function group(
  ins: number,
  outs: readonly number[],
  dtype: FloatType,
  frozen: boolean,
): LinearOperands[] {
  return outs.map((out, i) => {
    const weight = randomTensor([out, ins], { seed: 20 + i, dtype });
    // In bf16 a part with a start may lose 2^-9 of its change; test/native/kernels/linear has the bounds for that.
    const second = dtype === 'bf16' ? pair(ins, out, 3, -0.5, dtype) : started(ins, out, dtype);
    return {
      weight: frozen ? weight.freeze() : weight,
      bias: i === 1 ? randomTensor([out], { seed: 30, dtype }) : null,
      outputScale: i > 0 ? randomTensor([out], { seed: 31 + i, dtype: masterOf(dtype) }) : null,
      weightChange: i !== 1 ? randomTensor([out, ins], { seed: 40 + i, dtype }) : null,
      lowRank: i === 2 ? [] : [pair(ins, out, 4 + i, 0.5, dtype), second],
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

  it('has the gradient of its definition with starts, output scales and several parts', () => {
    const shapes = [[7, 5], [4, 5], [4], [4], [2, 5], [4, 2], [1, 5], [4, 1], [3, 5], [3]];
    const frozen = { a: randomTensor([2, 5], { seed: 31 }), b: randomTensor([4, 2], { seed: 32 }) };
    for (const start of [null, frozen]) {
      gradcheck(
        (...t) => {
          const [x, w, s, bias, a, b, c, d, other, scale] = t as [
            ...[Tensor, Tensor, Tensor, Tensor, Tensor],
            ...[Tensor, Tensor, Tensor, Tensor, Tensor],
          ];
          const lowRank = [
            { a, b, scale: 3, start },
            { a: c, b: d, scale: -0.5 },
          ];
          return linearGroup(x, [
            { weight: w, bias, outputScale: s, lowRank },
            { weight: other, outputScale: scale },
          ]);
        },
        shapes.map((shape, i) => randomTensor(shape, { seed: i + 1 })),
      );
    }
  });

  it('has the gradient of its definition with changes of weights, the adapter reading x or an input of its own', () => {
    const shapes = [[3, 4], [3, 4], [3, 4], [3, 4], [2, 4], [2, 4], [2], [2, 4], [3, 2], [1, 4]];
    const weights = shapes.slice(2, 6).map((shape, i) => randomTensor(shape, { seed: i + 3 }));
    for (const [isApart, isFrozen] of [
      [false, false],
      [false, true],
      [true, true],
    ]) {
      gradcheck(
        (...t) => {
          const [x, xa, w, c, other, change, scale, a, b, third] = t as [
            ...[Tensor, Tensor, Tensor, Tensor, Tensor],
            ...[Tensor, Tensor, Tensor, Tensor, Tensor],
          ];
          const base = (of: Tensor, i: number) => (isFrozen ? (weights[i] as Tensor) : of);
          const outputs = linearGroup(
            x,
            [
              { weight: base(w, 0), weightChange: c, lowRank: [{ a, b, scale: 3 }] },
              { weight: base(other, 2), weightChange: change, outputScale: scale },
              { weight: third },
            ],
            { adapterInput: isApart ? xa : null },
          );
          // Every input of the check must be used.
          return [...outputs, xa, w, other].map((y) => mul(y, 1));
        },
        shapes.map((shape, i) => randomTensor(shape, { seed: i + 1 })),
      );
    }
  });

  it('answers to a change of the weight far below its rounding, and gives it a gradient in f32', () => {
    const [rows, ins, outs] = [64, 96, 33];
    for (const dtype of ['bf16', 'f16'] as const) {
      // The inputs come in pairs that cancel beside weights of 1, which could not hold the change.
      const half = randomTensor([rows, ins / 2, 1], { seed: 1, dtype });
      const x = reshape(concat([half, mul(half, -1)], 2), [rows, ins]);
      const weight = full([outs, ins], 1, { dtype }).freeze();
      const change = mul(randomTensor([outs, ins], { seed: 2, dtype }), 2 ** -13);
      change.requiresGrad = true;
      const y = linear(x, weight, { weightChange: change });
      const want = definition(x, { weight: change });
      const largest = Math.max(...Array.from(want, Math.abs));
      expect(largest).toBeGreaterThan(1e-4);
      expectClose(y, want, roundingOf(dtype) * largest + 3e-6);
      const dy = randomTensor([rows, outs], { seed: 3, dtype });
      y.backward(dy);
      expect(change.grad?.dtype).toBe('f32');
      const [vx, vd] = [values(x), values(dy)];
      const gradient = Float64Array.from({ length: outs * ins }, (_, at) => {
        const [o, i] = [Math.floor(at / ins), at % ins];
        let sum = 0;
        for (let n = 0; n < rows; ++n)
          sum += (vd[n * outs + o] as number) * (vx[n * ins + i] as number);
        return sum;
      });
      expectClose(change.grad as Tensor, gradient, 1e-4);
    }
  });

  it('rounds the sum of weight and change once for the gradient of x', () => {
    for (const dtype of ['bf16', 'f16', 'f32'] as const) {
      const x = randomTensor([5, 24], { seed: 1, dtype, requiresGrad: true });
      const weight = randomTensor([7, 24], { seed: 2, dtype }).freeze();
      const change = mul(randomTensor([7, 24], { seed: 3, dtype }), 2 ** -3);
      const dy = randomTensor([5, 7], { seed: 4, dtype });
      linear(x, weight, { weightChange: change }).backward(dy);
      const together = randomTensor([5, 24], { seed: 1, dtype, requiresGrad: true });
      linear(together, add(weight, change)).backward(dy);
      expect(values(x.grad as Tensor)).toEqual(values(together.grad as Tensor));
    }
  });

  it('sums the gradient of an output scale in f32, and keeps nothing for it where it is frozen', () => {
    const x = randomTensor([123, 8], { seed: 1, dtype: 'bf16', requiresGrad: true });
    const weight = randomTensor([5, 8], { seed: 2, dtype: 'bf16' }).freeze();
    const outputScale = tensor([1, 2, 3, 4, 5], { requiresGrad: true });
    const dy = randomTensor([123, 5], { seed: 3, dtype: 'bf16' });
    linear(x, weight, { outputScale }).backward(dy);
    const [z, vd] = [definition(x, { weight }), values(dy)];
    const want = new Float64Array(5);
    const size = new Float64Array(5);
    vd.forEach((d, i) => {
      want[i % 5] = (want[i % 5] as number) + d * (z[i] as number);
      size[i % 5] = (size[i % 5] as number) + (d * (z[i] as number)) ** 2;
    });
    expect(outputScale.grad?.dtype).toBe('f32');
    // z is rounded to bf16: independent errors of at most 2^-9 of each term.
    values(outputScale.grad as Tensor).forEach((g, o) => {
      expect(Math.abs(g - (want[o] as number))).toBeLessThan(
        2 ** -8 * Math.sqrt(size[o] as number),
      );
    });
    const frozen = linear(x, weight, { outputScale: tensor([1, 2, 3, 4, 5]) });
    x.grad = null;
    frozen.backward(dy);
    const [gradient, vw] = [values(x.grad as unknown as Tensor), values(weight)];
    gradient.forEach((g, i) => {
      let sum = 0;
      let magnitude = 0;
      for (let o = 0; o < 5; ++o) {
        const term =
          (vd[Math.floor(i / 8) * 5 + o] as number) * (o + 1) * (vw[o * 8 + (i % 8)] as number);
        sum += term;
        magnitude += Math.abs(term);
      }
      expect(Math.abs(g - sum)).toBeLessThan(2 ** -7 * magnitude + 1e-6);
    });
  });

  it('keeps no input for a factor A that is frozen, without which its gradient cannot be computed', async () => {
    const [rows, ins, outs, rank] = [64, 48, 32, 4];
    for (const dtype of kFloatTypes) {
      const master = dtype === 'f64' ? 'f64' : 'f32';
      const weight = randomTensor([outs, ins], { seed: 2, dtype }).freeze();
      const b = randomTensor([outs, rank], { seed: 4, dtype: master, requiresGrad: true });
      const dy = randomTensor([rows, outs], { seed: 5, dtype });
      const kept = async (trainsA: boolean) => {
        const a = randomTensor([rank, ins], { seed: 3, dtype: master, requiresGrad: trainsA });
        await collectGarbage(); // tensors of earlier tests, which would be collected during this one
        const before = memoryStats().liveBytes;
        const x = randomTensor([rows, ins], { seed: 1, dtype });
        const y = linear(x, weight, { lowRank: [{ a, b }] });
        x.dispose();
        await synchronize();
        const bytes = memoryStats().liveBytes - before;
        y.backward(dy);
        const gradients = [a.grad, b.grad].map((grad) => grad && values(grad));
        b.grad = null;
        y.dispose();
        return { bytes, gradients };
      };
      const [frozen, trained] = [await kept(false), await kept(true)];
      const size = { bf16: 2, f16: 2, f32: 4, f64: 8 }[dtype];
      expect(trained.bytes - frozen.bytes, dtype).toBe(rows * ins * size);
      expect(frozen.gradients[0], dtype).toBeNull();
      expect(frozen.gradients[1], dtype).toEqual(trained.gradients[1]);
    }
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
    const lowRank = [pair(5, 4, 2, 1.5, 'f64')];
    const found = linear(x, weight, { lowRank, adapterInput: xa });
    expectClose(found, definition(x, { weight, lowRank }, xa), 1e-13);
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

  it('gives A the same gradient whether that of its input is wanted or not', () => {
    for (const dtype of kFloatTypes) {
      const [weight, dy] = [randomTensor([31, 64], { dtype }), randomTensor([33, 31], { dtype })];
      const { start, ...moved } = started(64, 31, dtype);
      for (const from of [start, null]) {
        const [alone, both] = [false, true].map((requiresGrad) => {
          const x = randomTensor([33, 64], { seed: 3, dtype, requiresGrad });
          const a = moved.a.detach();
          a.requiresGrad = true;
          linear(x, weight, { lowRank: [{ ...moved, a, start: from }] }).backward(dy);
          return values(a.grad as Tensor);
        });
        expect(alone).toEqual(both);
      }
    }
  });

  it('is bit for bit the base alone where a part is at its start', () => {
    for (const dtype of kFloatTypes) {
      const x = randomTensor([33, 64], { seed: 1, dtype });
      const weight = randomTensor([31, 64], { seed: 2, dtype }).freeze();
      const p = pair(64, 31, 8, 2, dtype);
      const both = linear(x, weight, { lowRank: [{ ...p, start: p }] });
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

  it('keeps what it packs of a few rows of a factor apart from what it packs of all of them', () => {
    for (const dtype of kFloatTypes) {
      const [x, weight] = [randomTensor([3, 64], { dtype }), randomTensor([32, 64], { dtype })];
      const { a, b } = pair(64, 32, 16, 1, dtype);
      const few = { a: slice(a, 0, { stop: 8 }), b: contiguous(slice(b, 1, { stop: 8 })) };
      const call = (part: LowRank) =>
        batchInvariant(() => values(linear(x, weight, { lowRank: [part] })));
      const copies = ({ a: of, b: by }: LowRank) => ({ a: mul(of, 1), b: mul(by, 1) });
      for (const part of [few, { a, b }, few]) expect(call(part)).toEqual(call(copies(part)));
    }
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
    expect(() => linear(x, w, { weightChange: f32(4, 5) })).toThrow(
      'linear: weightChange[0] must be (O,I)=(4,6), got (4,5)',
    );
    expect(() => linear(x, w, { weightChange: randomTensor([4, 6]) })).toThrow(
      'linear: weightChange[0] must be f32, got f64',
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
    const part = { a: f32(2, 6), b: f32(4, 2) };
    expect(() =>
      linear(x, w, { lowRank: [{ ...part, start: { a: f32(3, 6), b: f32(4, 3) } }] }),
    ).toThrow('linear: start.a[0] must be (R,I)=(2,6), got (3,6)');
    const start = { a: f32(2, 6), b: f32(4, 2) };
    start.b.requiresGrad = true;
    expect(() => linear(x, w, { lowRank: [part, { ...part, start }] })).toThrow(
      'linear: start.b[1] wants a gradient',
    );
    for (const [form, own, message] of [
      ['sinceStart', null, 'is sinceStart, but it has no start'],
      ['change', part, 'with a start must be sinceStart, got change'],
      ['twice', null, 'must be exact, change or sinceStart, got twice'],
    ] as const) {
      const lowRank = [{ ...part, start: own, form: form as PairForm }];
      expect(() => linear(x, w, { lowRank })).toThrow(
        `linear: the form of a low-rank part ${message}`,
      );
    }
    expect(() => linear(x, w, { outputScale: f32(3) })).toThrow(
      'linear: outputScale[0] must be (O)=(4), got (3)',
    );
    expect(() => linear(x, w, { outputScale: randomTensor([4]) })).toThrow(
      'linear: outputScale[0] must be f32, got f64',
    );
    expect(() => linearGroup(x, [])).toThrow('linear: no weight given');
  });
});
