/** Products of linears in int8 against the reference's codes, sums and values (../shared/golden/nf4/int8). */
import { expect, it } from 'vitest';
import { linear, zeros } from '../../lib/ops/index.ts';
import { type Int8Products, withInt8Products } from '../../lib/runtime.ts';
import { scope, tensor } from '../../lib/tensor.ts';
import { values } from '../support/compare.ts';
import { type GoldenArray, goldenArray, goldenArrays } from '../support/golden.ts';
import { describeShared, sharedPath } from '../support/shared.ts';

const kGolden = 'golden/nf4/int8';
/** Tolerance of the reference's README, as a part of the largest value. */
const kTolerance = 1e-6;

/** Zeros behind the inputs: 32 inputs more than a multiple of 64 are rotated in blocks of 32, one more not at all. */
const kZeros: Record<string, number> = { plain: 1, hadamard64: 0, hadamard32: 32 };

/** A matrix as a tensor, its rows filled up with zeros. */
function matrix({ shape, data }: GoldenArray, zeros = 0) {
  const [rows, columns] = shape as [number, number];
  const wide = new Float32Array(rows * (columns + zeros));
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) {
      wide[i * (columns + zeros) + j] = Number(data[i * columns + j]);
    }
  }
  return tensor(wide, { shape: [rows, columns + zeros] });
}

/** y = x w^T and, with a gradient dy, dx: both without the zeros. */
function computed(
  products: Int8Products,
  { x, w, dy, zeros = 0 }: { x: GoldenArray; w: GoldenArray; dy?: GoldenArray; zeros?: number },
): { y: Float64Array; dx: Float64Array } {
  return scope(() => {
    const [rows, columns] = x.shape as [number, number];
    const input = matrix(x, zeros);
    input.requiresGrad = dy !== undefined;
    const y = withInt8Products(products, () => linear(input, matrix(w, zeros).freeze()));
    if (dy === undefined) return { y: values(y), dx: new Float64Array() };
    y.backward(matrix(dy));
    const dx = new Float64Array(rows * columns);
    const wide = values(input.grad as NonNullable<typeof input.grad>);
    for (let i = 0; i < rows; i++) {
      const from = i * (columns + zeros);
      dx.set(wide.subarray(from, from + columns), i * columns);
    }
    return { y: values(y), dx };
  });
}

const numbers = ({ data }: GoldenArray): number[] => Array.from(data as ArrayLike<unknown>, Number);

function expectWithin(actual: ArrayLike<number>, expected: GoldenArray): void {
  const wanted = numbers(expected);
  expect(actual.length).toBe(wanted.length);
  const largest = Math.max(...wanted.map(Math.abs));
  const worst = Math.max(...wanted.map((value, i) => Math.abs(value - (actual[i] as number))));
  expect(worst / largest).toBeLessThanOrEqual(kTolerance);
}

/** The whole numbers that values are, over the scales of their rows and columns; NaN where a scale is 0. */
function sums(of: ArrayLike<number>, rows: GoldenArray, columns: GoldenArray | null): number[] {
  const width = of.length / rows.data.length;
  return Array.from(of, (value, i) => {
    const scale = columns === null ? 1 : Number(columns.data[i % width]);
    return Math.round(value / (Number(rows.data[Math.floor(i / width)]) * scale));
  });
}

/** Expects sums to be the reference's, except those that a scale of 0 hides, which are 0 there. */
function expectSums(actual: readonly number[], expected: GoldenArray): void {
  const wanted = numbers(expected);
  expect(actual.map((sum, i) => (Number.isNaN(sum) ? 0 : sum) - (wanted[i] as number))).toEqual(
    wanted.map(() => 0),
  );
}

describeShared('products in int8', [kGolden], () => {
  const golden = goldenArrays(sharedPath(`${kGolden}/int8.safetensors`));
  const of = (name: string): GoldenArray => goldenArray(golden, name);
  const [x, w, dy] = [of('x'), of('w'), of('dy')];

  it.each(['plain', 'hadamard64', 'hadamard32'])('%s: y', (name) => {
    const { y } = computed({ forward: true }, { x, w, zeros: kZeros[name] as number });
    expectWithin(y, of(`${name}.y`));
    expectSums(sums(y, of(`${name}.sx`), of(`${name}.sw`)), of(`${name}.acc`));
  });

  it.each(['plain', 'hadamard64', 'hadamard32'])('%s: dx', (name) => {
    const rotated = name !== 'plain';
    const products = { inputGradient: true, rotated };
    const { dx } = computed(products, { x, w, dy, zeros: kZeros[name] as number });
    expectWithin(dx, of(`${name}.dx`));
    if (!rotated) expectSums(sums(dx, of(`${name}.sg`), null), of(`${name}.dacc`));
  });

  it("multiplies by the codes that are kept for backward, which are the reference's", () => {
    scope(() => {
      const [rows, width] = x.shape as [number, number];
      const outs = w.shape[0] as number;
      const [a, b] = [zeros([rows, width]), zeros([outs, rows])];
      for (const factor of [a, b]) factor.requiresGrad = true;
      const input = matrix(x);
      const y = withInt8Products({ forward: true, savedActivations: true }, () =>
        linear(input, matrix(w).freeze(), { lowRank: [{ a, b }] }),
      );
      expectWithin(values(y), of('hadamard64.y'));
      expectSums(sums(values(y), of('hadamard64.sx'), of('hadamard64.sw')), of('hadamard64.acc'));
    });
  });

  it('uses one copy of the weight in both directions, the same sums from both', () => {
    const both = computed({ forward: true, inputGradient: true }, { x, w, dy });
    const apart = computed({ inputGradient: true, rotated: true }, { x, w, dy });
    expect(both.dx).toEqual(apart.dx);
    expectWithin(both.y, of('hadamard64.y'));
  });

  it.each(['plain', 'hadamard64'])('%s: products of the largest codes are exact', (name) => {
    const given = { x: of('extreme.x'), w: of('extreme.w'), zeros: kZeros[name] as number };
    const { y } = computed({ forward: true }, given);
    const [sx, sw] = [of(`extreme_${name}.sx`), of(`extreme_${name}.sw`)];
    expectWithin(y, of(`extreme_${name}.y`));
    expectSums(sums(y, sx, sw), of(`extreme_${name}.acc`));
  });

  it('rounds exact halves to even', () => {
    const ties = of('ties.x');
    const width = ties.shape[1] as number;
    const unit = { shape: [width, width], data: new Float32Array(width * width) };
    for (let i = 0; i < width; i++) unit.data[i * (width + 1)] = 127; // of scale 1, whose code is 127
    const { y } = computed({ forward: true }, { x: ties, w: unit });
    const codes = sums(y, of('ties.s'), null).map((sum) => sum / 127);
    expect(codes.map((code) => code + 0)).toEqual(numbers(of('ties.q')));
  });
});
