// Fits of growth: exact laws are recovered, and the better form is chosen.
import { describe, expect, it } from 'vitest';
import { fitGrowth, valueAt } from '../../../bench/harness/fit.ts';
import { median, spread } from '../../../bench/harness/statistics.ts';

const points = (law: (x: number) => number) => [1, 2, 4, 8].map((x) => ({ x, y: law(x) }));

describe('fitGrowth', () => {
  it('recovers a power law', () => {
    const fit = fitGrowth(points((x) => 3 * x ** 1.5));
    expect(fit.form).toBe('power');
    expect(fit.a).toBeCloseTo(3, 9);
    expect(fit.b).toBeCloseTo(1.5, 9);
    expect(fit.r2).toBeCloseTo(1, 9);
    expect(fit.formula).toBe('3 x^1.50');
    expect(valueAt(fit, 16)).toBeCloseTo(192, 6);
  });

  it('recovers a line with an offset, which no power law explains', () => {
    const fit = fitGrowth(points((x) => 10 + 2 * x));
    expect(fit).toMatchObject({ form: 'linear', formula: '10 + 2 x' });
    expect(valueAt(fit, 16)).toBeCloseTo(42, 9);
    expect(fitGrowth(points((x) => 20 - 2 * x)).formula).toBe('20 - 2 x');
  });

  it('returns the explained share of the variance', () => {
    const fit = fitGrowth([
      { x: 1, y: 1 },
      { x: 2, y: 5 },
      { x: 3, y: 2 },
      { x: 4, y: 6 },
    ]);
    expect(fit.r2).toBeGreaterThan(0);
    expect(fit.r2).toBeLessThan(0.8);
  });

  it('refuses points that it cannot fit', () => {
    expect(() => fitGrowth(points((x) => x).slice(0, 2))).toThrow(/three sizes/);
    expect(() => fitGrowth(points(() => 0))).toThrow(/positive/);
  });
});

describe('statistics', () => {
  it('are the median of odd and even counts, and the extremes', () => {
    expect(median([3, 1, 2])).toBe(2);
    expect(median([4, 1, 2, 3])).toBe(2.5);
    expect(spread([5, 1, 3])).toEqual({ median: 3, low: 1, high: 5, samples: 3 });
    expect(() => median([])).toThrow(/no values/);
  });
});
