import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Selection } from '../../lib/generate/selection.ts';

const floats = fc.array(
  fc.oneof(
    fc.float({ noNaN: true }),
    fc.constantFrom(0, -0, 1, -1, Number.NEGATIVE_INFINITY, 1.0000001),
  ),
  { minLength: 1, maxLength: 200 },
);

describe('Selection', () => {
  it('finds the k-th largest value, as sorting does', () => {
    const selection = new Selection();
    fc.assert(
      fc.property(floats, fc.integer({ min: 1, max: 250 }), (given, k) => {
        const values = Float32Array.from(given);
        const sorted = Float32Array.from(values).sort().reverse();
        const at = Math.min(k, values.length) - 1;
        const { value, weight } = selection.largest(values, k);
        expect(value === sorted[at]).toBe(true); // 0 and -0 are equal
        expect(weight).toBe(1);
      }),
    );
  });

  it('finds where the weights of the largest values reach a target', () => {
    const selection = new Selection();
    // Whole numbers, so that no sum is rounded; equal values have equal weights.
    const pairs = fc.array(fc.integer({ min: -20, max: 20 }), { minLength: 1, maxLength: 100 });
    fc.assert(
      fc.property(pairs, fc.integer({ min: 0, max: 400 }), (given, target) => {
        const values = Float32Array.from(given);
        const weights = values.map((value) => 1 + (Math.abs(value) % 7));
        const { value, above, weight } = selection.largest(values, target, weights);
        const sumOf = (wanted: (v: number) => boolean): number =>
          values.reduce((sum, v, i) => sum + (wanted(v) ? (weights[i] as number) : 0), 0);
        expect(above).toBe(sumOf((v) => v > value));
        expect(weight).toBe(1 + (Math.abs(value) % 7));
        if (above > 0) expect(above).toBeLessThan(target);
        const reached = sumOf((v) => v >= value);
        if (value > Math.min(...values)) expect(reached).toBeGreaterThanOrEqual(target);
      }),
    );
  });

  it('takes memory for longer rows, and views into larger arrays', () => {
    const selection = new Selection();
    expect(selection.largest(Float32Array.of(1, 3, 2), 2).value).toBe(2);
    const long = Float32Array.from({ length: 5000 }, (_, i) => i % 4999);
    expect(selection.largest(long.subarray(10, 4990), 10).value).toBe(4980);
  });
});
