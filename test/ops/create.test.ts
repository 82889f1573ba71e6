import { describe, expect, it } from 'vitest';
import { arange, full, ones, rand, randn, randomWords, zeros } from '../../lib/ops/index.ts';
import { getNumThreads, setNumThreads } from '../../lib/runtime.ts';
import type { DType } from '../../lib/tensor.ts';
import { expectClose, kFloatTypes, values } from '../support/compare.ts';

describe('constants and counters', () => {
  it('fill every dtype', () => {
    for (const dtype of ['f64', 'f32', 'bf16', 'f16', 'i32', 'i64', 'u8'] as DType[]) {
      for (const size of [0, 1, 31, 33, 123]) {
        expectClose(full([size], 7, { dtype }), new Float64Array(size).fill(7), 0);
        expectClose(zeros([size, 2], { dtype }), new Float64Array(2 * size), 0);
        expectClose(
          arange(0, size, { dtype }),
          Float64Array.from({ length: size }, (_, i) => i),
          0,
        );
      }
    }
    expect(ones([2]).dtype).toBe('f32');
    expect(ones([2], { requiresGrad: true }).requiresGrad).toBe(true);
  });

  it('arange counts by any step and stops before the end', () => {
    expectClose(arange(5, 0, { step: -2 }), [5, 3, 1], 0);
    expectClose(arange(0, 1, { step: 0.3, dtype: 'f64' }), [0, 0.3, 0.6, 0.3 * 3], 1e-15);
    expect(arange(3, 3).shape).toEqual([0]);
    expect(arange(3, 0).shape).toEqual([0]);
    expect(() => arange(0, 3, { step: 0 })).toThrow(
      'arange: start, stop and step must be finite and step not 0',
    );
  });
});

describe('random numbers', () => {
  it('are Philox words (known answers of the reference implementation)', () => {
    expectClose(randomWords(4, { seed: 0 }), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8], 0);
  });

  it('of rand are exactly these words, in every dtype and range', () => {
    const words = values(randomWords(1000, { seed: 11, stream: 4 }));
    const bits = { f32: 24, bf16: 8, f16: 11 } as const;
    for (const [dtype, n] of Object.entries(bits)) {
      const want = words.map((w) => Math.floor(w / 2 ** (32 - n)) / 2 ** n);
      expectClose(rand([1000], { seed: 11, stream: 4, dtype: dtype as DType }), want, 0);
    }
    const wide = words
      .filter((_, i) => i % 2 === 0)
      .map((high, i) => {
        const low = words[2 * i + 1] as number;
        return (high * 2 ** 21 + Math.floor(low / 2 ** 11)) / 2 ** 53;
      });
    expectClose(rand([500], { seed: 11, stream: 4, dtype: 'f64' }), wide, 0);
    const unit = values(rand([1000], { seed: 11 }));
    const want = unit.map((u) => Math.fround(-2 + 5 * u));
    expectClose(rand([1000], { seed: 11, low: -2, high: 3 }), want, 0);
  });

  it('of rand stay inside [low, high) and fill it', () => {
    for (const dtype of kFloatTypes) {
      const x = values(rand([20011], { seed: 3, low: -1, high: 1, dtype }));
      expect(Math.min(...x)).toBeGreaterThanOrEqual(-1);
      expect(Math.max(...x)).toBeLessThan(1);
      expect(Math.abs(x.reduce((a, b) => a + b, 0) / x.length)).toBeLessThan(0.02);
    }
  });

  it('of randn have the moments of a normal distribution', () => {
    for (const dtype of kFloatTypes) {
      const x = values(randn([40001], { seed: 4, mean: 2, deviation: 3, dtype }));
      const mean = x.reduce((a, b) => a + b, 0) / x.length;
      const deviation = Math.sqrt(x.reduce((a, b) => a + (b - mean) ** 2, 0) / x.length);
      expect(Math.abs(mean - 2)).toBeLessThan(0.05);
      expect(Math.abs(deviation - 3)).toBeLessThan(0.05);
    }
  });

  it('depend only on seed, stream and index', () => {
    const draw = (seed: number, stream = 0, size = 5000) =>
      Array.from(values(randn([size], { seed, stream })));
    const before = draw(1);
    const threads = getNumThreads();
    setNumThreads(1);
    expect(draw(1)).toEqual(before);
    setNumThreads(threads);
    expect(draw(1, 0, 33)).toEqual(before.slice(0, 33));
    expect(draw(2)).not.toEqual(before);
    expect(draw(1, 1)).not.toEqual(before);
  });

  it('refuse bad arguments by name', () => {
    expect(() => rand([2], { seed: 0, dtype: 'i32' })).toThrow(
      'rand: dtype must be a float type, got i32',
    );
    expect(() => rand([2], { seed: -1 })).toThrow('rand: seed must be >= 0, got -1');
    expect(() => rand([2], { seed: 0, low: 1, high: 0 })).toThrow(
      'rand: low must not be above high',
    );
    expect(() => randn([2], { seed: 0, deviation: -1 })).toThrow(
      'randn: the standard deviation must be >= 0',
    );
    expect(() => zeros([-1])).toThrow('negative');
  });
});
