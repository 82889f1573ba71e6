import { describe, expect, it } from 'vitest';
import { Sampler, uniform } from '../../lib/generate/sampler.ts';

describe('uniform', () => {
  it('is a function of seed, sequence and position, each of which matters', () => {
    const all = [
      uniform(1, 2, 3),
      uniform(2, 2, 3),
      uniform(1 + 2 ** 32, 2, 3),
      uniform(1, 3, 3),
      uniform(1, 2, 4),
    ];
    expect(new Set(all).size).toBe(all.length);
    expect(uniform(1, 2, 3)).toBe(all[0]);
    for (const value of all) {
      expect(value).toBeGreaterThanOrEqual(0);
      expect(value).toBeLessThan(1);
    }
  });

  it('has the moments of a uniform distribution', () => {
    const count = 40_000;
    const values = Array.from({ length: count }, (_, i) => uniform(7, i % 8, i >> 3));
    const mean = values.reduce((sum, value) => sum + value, 0) / count;
    const square = values.reduce((sum, value) => sum + value * value, 0) / count;
    // Five standard deviations of the mean of so many draws: sqrt(1/12/n), sqrt(4/45/n).
    expect(Math.abs(mean - 1 / 2)).toBeLessThan(5 * Math.sqrt(1 / 12 / count));
    expect(Math.abs(square - 1 / 3)).toBeLessThan(5 * Math.sqrt(4 / 45 / count));
  });
});

describe('Sampler', () => {
  it('draws by the softmax of the scores', () => {
    const probabilities = [0.5, 0.2, 0, 0.25, 0.05];
    const scores = Float32Array.from(probabilities, (p) =>
      p === 0 ? Number.NEGATIVE_INFINITY : Math.log(p) + 30,
    );
    const counts = probabilities.map(() => 0);
    const count = 20_000;
    const sampler = new Sampler(11);
    for (let position = 0; position < count; position++) {
      const id = sampler.draw(scores, { sequence: 0, position });
      counts[id] = (counts[id] as number) + 1;
    }
    expect(counts[2]).toBe(0);
    probabilities.forEach((p, id) => {
      const deviation = Math.sqrt((p * (1 - p)) / count);
      expect(Math.abs((counts[id] as number) / count - p), `id ${id}`).toBeLessThanOrEqual(
        5 * deviation,
      );
    });
  });

  it('draws the same from the same row, whatever it drew before', () => {
    const scores = Float32Array.from({ length: 300 }, (_, i) => Math.sin(i));
    const place = { sequence: 3, position: 5 };
    const fresh = new Sampler(1).draw(scores, place);
    const used = new Sampler(1);
    used.draw(Float32Array.of(1, 2), { sequence: 0, position: 0 });
    expect(used.draw(scores, place)).toBe(fresh);
  });

  it('draws the only id that is left', () => {
    const scores = new Float32Array(50).fill(Number.NEGATIVE_INFINITY);
    scores[49] = -1e30;
    expect(new Sampler(0).draw(scores, { sequence: 0, position: 0 })).toBe(49);
  });
});
