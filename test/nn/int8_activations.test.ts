// Activations that are kept in int8 for backward: gradients are those of the rounded values, which plain loops define here; what is kept
// takes a quarter of the bytes of f32; and the same codes serve everyone that reads a value.
import { describe, expect, it } from 'vitest';
import { backward, checkpoint, recomputing } from '../../lib/autograd.ts';
import { UnsupportedError } from '../../lib/errors.ts';
import {
  attention,
  layerNorm,
  linear,
  mul,
  randn,
  rmsNorm,
  rmsNormAdd,
  swiglu,
} from '../../lib/ops/index.ts';
import {
  type Int8Products,
  memoryStats,
  resetOpTimes,
  synchronize,
  withInt8Products,
} from '../../lib/runtime.ts';
import { type DType, noGrad, scope, type Tensor, tensor } from '../../lib/tensor.ts';
import { collectGarbage } from '../support/collect_garbage.ts';
import { values } from '../support/compare.ts';
import { callsOf } from '../support/run_numbers.ts';

const kSaved: Int8Products = { savedActivations: true };
/** Rows that are no whole block, and a width that is rotated in blocks of 32. */
const [kRows, kWidth] = [61, 96];

const random = (shape: number[], seed: number, dtype: DType = 'f32'): Tensor =>
  randn(shape, { seed, dtype });
function leaf(shape: number[], seed: number, dtype: DType = 'f32'): Tensor {
  const x = random(shape, seed, dtype);
  x.requiresGrad = true;
  return x;
}
const gradient = ({ grad }: Tensor): Float64Array => values(grad as Tensor);

/** Blocks of a row times the Hadamard matrix in Sylvester's order over the root of its size. */
function rotated(row: number[], size: number): number[] {
  const odd = (bits: number): boolean => bits !== 0 && (bits & 1) !== (odd(bits >> 1) ? 1 : 0);
  return row.map((_, i) => {
    const block = Math.floor(i / size) * size;
    let sum = 0;
    for (let j = 0; j < size; j++)
      sum += (odd((i % size) & j) ? -1 : 1) * (row[block + j] as number);
    return sum / Math.sqrt(size);
  });
}

/** The values that the codes of rows stand for. */
function rounded(x: ArrayLike<number>, width: number): Float64Array {
  const size = width % 64 === 0 ? 64 : width % 32 === 0 ? 32 : 1;
  const out: number[] = [];
  for (let first = 0; first < x.length; first += width) {
    const row = rotated(
      Array.from({ length: width }, (_, i) => x[first + i] as number),
      size,
    );
    const scale = Math.max(...row.map(Math.abs)) / 127;
    const codes = row.map((value) => (scale === 0 ? 0 : Math.round(value / scale)));
    out.push(
      ...rotated(
        codes.map((code) => code * scale),
        size,
      ),
    );
  }
  return Float64Array.from(out);
}
const inInt8 = (x: Tensor, width = x.shape.at(-1) as number): Tensor =>
  tensor(rounded(values(x), width), { shape: x.shape, dtype: x.dtype });

/** Expects values to be close to others, as a part of their largest. */
function expectNear(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  tolerance = 2e-5,
): void {
  expect(actual.length).toBe(expected.length);
  const largest = Math.max(...Array.from(expected, Math.abs));
  for (let i = 0; i < actual.length; i++) {
    const error = Math.abs((actual[i] as number) - (expected[i] as number));
    if (!(error <= tolerance * largest)) {
      expect.fail(`index ${i}: got ${actual[i]}, expected ${expected[i]}, of at most ${largest}`);
    }
  }
}

/** Error of values, in norms. */
function errorOf(actual: Float64Array, expected: Float64Array): number {
  return (
    Math.hypot(...actual.map((value, i) => value - (expected[i] as number))) /
    Math.hypot(...expected)
  );
}

describe('activations kept in int8', () => {
  it.each(['f32', 'bf16', 'f16'] as const)(
    'give a gate the gradients of their values: %s',
    (dtype) => {
      scope(() => {
        const run = (gate: Tensor, up: Tensor, products: Int8Products) => {
          for (const x of [gate, up]) x.requiresGrad = true;
          const y = withInt8Products(products, () => swiglu(gate, up));
          y.backward(random([kRows, kWidth], 3, dtype));
          return [values(y), gradient(gate), gradient(up)] as const;
        };
        const [gate, up] = [random([kRows, kWidth], 1, dtype), random([kRows, kWidth], 2, dtype)];
        const exact = run(gate.detach(), up.detach(), {});
        const kept = run(gate.detach(), up.detach(), kSaved);
        const wanted = run(inInt8(gate), inInt8(up), {});
        expect(kept[0]).toEqual(exact[0]);
        for (const i of [1, 2] as const) {
          expectNear(kept[i], wanted[i], dtype === 'f32' ? 2e-5 : 2e-2);
          expect(errorOf(kept[i], exact[i])).toBeLessThan(0.02);
          expect(errorOf(kept[i], exact[i])).toBeGreaterThan(1e-4);
        }
      });
    },
  );

  it('give the factors of a linear the gradients of its input, and change no other', () => {
    scope(() => {
      const weight = random([40, kWidth], 1).freeze();
      const given = random([kRows, kWidth], 2);
      const run = (x: Tensor, products: Int8Products) => {
        x.requiresGrad = true;
        const [a, b] = [leaf([5, kWidth], 4), leaf([40, 5], 5)];
        const y = withInt8Products(products, () => linear(x, weight, { lowRank: [{ a, b }] }));
        y.backward(random([kRows, 40], 3));
        return { y: values(y), dx: gradient(x), da: gradient(a), db: gradient(b) };
      };
      const [exact, kept] = [run(given.detach(), {}), run(given.detach(), kSaved)];
      const wanted = run(inInt8(given), {});
      expect({ ...kept, da: null }).toEqual({ ...exact, da: null });
      expectNear(kept.da, wanted.da);
      expect(errorOf(kept.da, exact.da)).toBeGreaterThan(1e-4);
    });
  });

  it('give norms the gradients of their formulas', () => {
    scope(() => {
      const [x, weight, dy] = [
        random([kRows, kWidth], 1),
        random([kWidth], 2),
        random([kRows, kWidth], 3),
      ];
      const [xs, ws, slopes, ys] = [
        values(x),
        values(weight),
        values(dy),
        rounded(values(x), kWidth),
      ];
      const rms: number[] = [];
      const layer: number[] = [];
      for (let first = 0; first < xs.length; first += kWidth) {
        const sum = (f: (i: number) => number): number => {
          let total = 0;
          for (let i = 0; i < kWidth; i++) total += f(i);
          return total / kWidth;
        };
        const at = (list: Float64Array, i: number): number => list[first + i] as number;
        const g = (i: number): number => at(slopes, i) * (ws[i] as number);
        // Means and deviations are those of the forward pass.
        const scale = 1 / Math.sqrt(sum((i) => at(xs, i) ** 2) + 1e-6);
        const dot = sum((i) => g(i) * at(ys, i)) * scale ** 2;
        const mean = sum((i) => at(xs, i));
        const rstd = 1 / Math.sqrt(sum((i) => (at(xs, i) - mean) ** 2) + 1e-5);
        const hat = (i: number): number => (at(ys, i) - mean) * rstd;
        const [meanG, meanDot] = [sum(g), sum((i) => g(i) * hat(i))];
        for (let i = 0; i < kWidth; i++) {
          rms.push(scale * (g(i) - at(ys, i) * dot));
          layer.push(rstd * (g(i) - meanG - hat(i) * meanDot));
        }
      }
      const run = (norm: (x: Tensor) => Tensor): Float64Array => {
        const input = x.detach();
        input.requiresGrad = true;
        withInt8Products(kSaved, () => norm(input)).backward(dy);
        return gradient(input);
      };
      expectNear(
        run((input) => rmsNorm(input, weight)),
        rms,
      );
      expectNear(
        run((input) => layerNorm(input, { weight })),
        layer,
      );
      const zeros = tensor(new Float32Array(kRows * kWidth), { shape: [kRows, kWidth] });
      expectNear(
        run((input) => rmsNormAdd(input, zeros, weight)[1]),
        rms,
      );
    });
  });

  it('give attention the gradients of its formula', () => {
    scope(() => {
      const [heads, size] = [2, 32];
      const shape = [kRows, heads, size];
      const [q, k, v] = [1, 2, 3].map((seed) => leaf(shape, seed)) as [Tensor, Tensor, Tensor];
      const dy = random(shape, 4);
      const cuSeqlens = tensor(Int32Array.of(0, kRows));
      const out = withInt8Products(kSaved, () => attention(q, k, v, { cuSeqlens }));
      out.backward(dy);
      const width = heads * size;
      const [qs, ks, vs, os] = [q, k, v, out].map((x) => rounded(values(x), width)) as [
        ...[Float64Array, Float64Array, Float64Array, Float64Array],
      ];
      const [exactQ, exactK, slopes] = [values(q), values(k), values(dy)];
      const [dq, dk, dv] = [0, 1, 2].map(() => new Float64Array(kRows * width)) as [
        ...[Float64Array, Float64Array, Float64Array],
      ];
      const dot = (a: Float64Array, i: number, b: Float64Array, j: number): number => {
        let sum = 0;
        for (let c = 0; c < size; c++) sum += (a[i + c] as number) * (b[j + c] as number);
        return sum;
      };
      const add = (
        to: Float64Array,
        i: number,
        from: Float64Array,
        j: number,
        by: number,
      ): void => {
        for (let c = 0; c < size; c++) (to[i + c] as number) += by * (from[j + c] as number);
      };
      const scale = 1 / Math.sqrt(size);
      for (let h = 0; h < heads; h++) {
        for (let t = 0; t < kRows; t++) {
          const row = (i: number): number => i * width + h * size;
          let sum = 0; // the log-sum-exp is kept as it is
          for (let j = 0; j <= t; j++) sum += Math.exp(scale * dot(exactQ, row(t), exactK, row(j)));
          const delta = dot(slopes, row(t), os, row(t));
          for (let j = 0; j <= t; j++) {
            const p = Math.exp(scale * dot(qs, row(t), ks, row(j))) / sum;
            const ds = p * (dot(slopes, row(t), vs, row(j)) - delta) * scale;
            add(dv, row(j), slopes, row(t), p);
            add(dq, row(t), ks, row(j), ds);
            add(dk, row(j), qs, row(t), ds);
          }
        }
      }
      expectNear(gradient(q), dq);
      expectNear(gradient(k), dk);
      expectNear(gradient(v), dv);
    });
  });

  it('take a quarter of the bytes, once for everyone who reads them', async () => {
    const [rows, width] = [256, 128];
    const codes = rows * width + 4 * rows;
    const run = async (products: Int8Products, body: (x: Tensor) => Tensor): Promise<number> => {
      await collectGarbage(); // tensors of earlier tests, which would be collected during this one
      const { liveBytes: before } = memoryStats();
      const y = scope(() => {
        const x = leaf([rows, width], 1);
        return withInt8Products(products, () => body(mul(x, x)));
      });
      await synchronize();
      const kept = memoryStats().liveBytes - before - 4 * rows * width * 2; // of x and y
      y.dispose();
      return kept;
    };
    // The product x x keeps x itself, which is counted above.
    expect(await run({}, (x) => swiglu(x, x))).toBe(4 * rows * width);
    expect(await run(kSaved, (x) => swiglu(x, x))).toBe(codes);
    const weight = scope(() => random([width, width], 2).freeze());
    const [a, b] = [leaf([4, width], 3), leaf([width, 4], 4)];
    const part = [{ a, b }];
    const both = (x: Tensor): Tensor => linear(swiglu(x, x), weight, { lowRank: part });
    const u = 4 * rows * 4; // x A^T
    const cases = { ...kSaved, forward: true };
    await run(cases, both); // makes the copy of the weight
    expect(await run(cases, both)).toBe(2 * codes + u);
    expect(await run(cases, (x) => recomputing(true, () => both(x)))).toBe(codes + u);
    expect(await run(cases, (x) => noGrad(() => both(x)))).toBe(-4 * rows * width); // x is not kept
    for (const each of [weight, a, b]) each.dispose();
  });

  it('are made once for a product and for the backward pass that keeps them', async () => {
    await synchronize();
    resetOpTimes();
    scope(() => {
      const [a, b] = [leaf([3, 64], 4), leaf([40, 3], 5)];
      const weight = random([40, 64], 1).freeze();
      withInt8Products({ ...kSaved, forward: true }, () =>
        linear(leaf([kRows, 64], 2), weight, { lowRank: [{ a, b }] }),
      );
    });
    await synchronize();
    expect(callsOf('quantize_rows')).toBe(1);
  });

  it('are what a product in int8 multiplies by, to the same bits', () => {
    scope(() => {
      const weight = random([40, 64], 1).freeze();
      const run = (products: Int8Products, lowRank = true) => {
        const [a, b] = [leaf([3, 64], 4), leaf([40, 3], 5)];
        const x = leaf([kRows, 64], 2);
        const parts = lowRank ? [{ a, b }] : [];
        const y = withInt8Products(products, () => linear(x, weight, { lowRank: parts }));
        y.backward(random([kRows, 40], 3));
        return [values(y), gradient(x)];
      };
      const both = { forward: true, inputGradient: true };
      expect(run({ ...both, savedActivations: true })).toEqual(run(both));
      expect(run({ ...both, savedActivations: true }, false)).toEqual(run(both, false));
    });
  });

  it('are kept by a checkpointed segment when it is computed again', () => {
    scope(() => {
      const run = (wrapped: boolean) => {
        const x = leaf([kRows, kWidth], 2);
        const segment = (input: Tensor): Tensor => swiglu(input, mul(input, input));
        const y = withInt8Products(kSaved, () => (wrapped ? checkpoint(segment, [x]) : segment(x)));
        y.backward(random([kRows, kWidth], 3));
        return [values(y), gradient(x)];
      };
      expect(run(true)).toEqual(run(false));
    });
  });

  it('serve a second backward pass', () => {
    scope(() => {
      const [gate, up] = [leaf([kRows, kWidth], 1), leaf([kRows, kWidth], 2)];
      const y = withInt8Products(kSaved, () => swiglu(gate, up));
      const dy = random([kRows, kWidth], 3);
      backward([y], [dy], { retainGraph: true });
      const once = gradient(gate);
      backward([y], [dy]);
      expect(Array.from(gradient(gate))).toEqual(Array.from(once, (value) => 2 * value));
    });
  });

  it('are refused in f64, and left alone where codes would not be smaller', () => {
    scope(() => {
      const refused = () =>
        withInt8Products(kSaved, () => swiglu(leaf([4, 64], 1, 'f64'), leaf([4, 64], 2, 'f64')));
      expect(refused).toThrow(UnsupportedError);
      expect(refused).toThrow('activations in f64 are not kept in int8 for backward');
      const run = (products: Int8Products) => {
        const x = leaf([2, 6], 1);
        withInt8Products(products, () => swiglu(x, x)).backward(random([2, 6], 3));
        return gradient(x);
      };
      expect(run(kSaved)).toEqual(run({}));
    });
  });
});
