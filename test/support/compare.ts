// Comparison of a tensor with plain numbers; a failure names the index and both values.
import { expect } from 'vitest';
import type { DType, Tensor } from '../../lib/tensor.ts';

export const kFloatTypes = ['f64', 'f32', 'bf16', 'f16'] as const;

/** The values of a tensor of any dtype as f64. */
export function values(t: Tensor): Float64Array {
  return Float64Array.from(t.dataSync() as ArrayLike<number>, Number);
}

/** The relative error of one rounding to the dtype: half a unit in the last place of 1. */
export function roundingOf(dtype: DType): number {
  return { f64: 2 ** -53, f32: 2 ** -24, bf16: 2 ** -8, f16: 2 ** -11 }[dtype as 'f64'] ?? 0;
}

/** Expects |actual - expected| <= tolerance * max(1, |expected|) for each element. */
export function expectClose(actual: Tensor, expected: ArrayLike<number>, tolerance: number): void {
  const got = values(actual);
  expect(got.length).toBe(expected.length);
  for (let i = 0; i < got.length; ++i) {
    const want = expected[i] as number;
    const error = Math.abs((got[i] as number) - want);
    if (!(error <= tolerance * Math.max(1, Math.abs(want)))) {
      expect.fail(`index ${i}: got ${got[i]}, expected ${want}, tolerance ${tolerance}`);
    }
  }
}

/** Expects the same values, NaN and the sign of zero included. For arrays of millions, over which vitest's toEqual takes seconds. */
export function expectSame(actual: ArrayLike<unknown>, expected: ArrayLike<unknown>): void {
  expect(actual.length).toBe(expected.length);
  for (let i = 0; i < expected.length; ++i) {
    if (!Object.is(actual[i], expected[i])) {
      expect.fail(`index ${i}: got ${actual[i]}, expected ${expected[i]}`);
    }
  }
}
