// Rope variants against definitions in plain loops, both spellings of their configuration, and tables that grow.
import { describe, expect, it } from 'vitest';
import { RopeCache, type RopeConfig, ropeConfig, ropeFrequencies } from '../../lib/models/rope.ts';
import { values } from '../support/compare.ts';

const base = { theta: 10_000, dim: 16 };
const plain = Array.from({ length: 8 }, (_, i) => 1 / 10_000 ** ((2 * i) / 16));
const close = (got: ArrayLike<number>, want: readonly number[]): void => {
  expect(got.length).toBe(want.length);
  want.forEach((v, i) => {
    expect(Math.abs((got[i] as number) / v - 1)).toBeLessThan(1e-14);
  });
};
const read = (keys: object, maxPositions = 64): RopeConfig =>
  ropeConfig({ ...keys, max_position_embeddings: maxPositions }, 16, 'config.json');

describe('frequencies', () => {
  it('default, linear, factors', () => {
    close(ropeFrequencies({ ...base, type: 'default' }, 10), plain);
    close(
      ropeFrequencies({ ...base, type: 'linear', factor: 4 }, 10),
      plain.map((f) => f / 4),
    );
    const factors = [1, 1, 2, 3, 4, 5, 6, 8];
    close(
      ropeFrequencies({ ...base, type: 'factors', factors }, 10),
      plain.map((f, i) => f / (factors[i] as number)),
    );
  });

  it('dynamic: the trained base up to the trained length, then a growing one', () => {
    const config: RopeConfig = { ...base, type: 'dynamic', factor: 4, maxPositions: 32 };
    close(ropeFrequencies(config, 5), plain);
    close(ropeFrequencies(config, 32), plain);
    const theta = 10_000 * ((4 * 48) / 32 - 3) ** (16 / 14);
    close(
      ropeFrequencies(config, 48),
      plain.map((_, i) => theta ** ((-2 * i) / 16)),
    );
  });

  it('llama3: scaled by wavelength', () => {
    const config = read({
      rope_parameters: {
        rope_type: 'llama3',
        rope_theta: 10_000,
        factor: 8,
        low_freq_factor: 1,
        high_freq_factor: 4,
        original_max_position_embeddings: 32,
      },
    });
    const bands = new Set<string>();
    const want = plain.map((f) => {
      const wavelength = (2 * Math.PI) / f;
      if (wavelength < 32 / 4) return bands.add('high') && f;
      if (wavelength > 32 / 1) return bands.add('low') && f / 8;
      bands.add('middle');
      const smooth = (32 / wavelength - 1) / (4 - 1);
      return (1 - smooth) * (f / 8) + smooth * f;
    });
    expect(bands.size).toBe(3);
    close(ropeFrequencies(config, 100), want);
  });

  it.each([true, false])('yarn, truncate %s', (truncate) => {
    const parameters = {
      rope_type: 'yarn',
      rope_theta: 500,
      factor: 4,
      beta_fast: 4,
      beta_slow: 1,
      truncate,
    };
    const config = read(
      { rope_parameters: { ...parameters, original_max_position_embeddings: 64 } },
      256,
    );
    const at = (turns: number): number =>
      (16 * Math.log(64 / (turns * 2 * Math.PI))) / (2 * Math.log(500));
    const low = Math.max(truncate ? Math.floor(at(4)) : at(4), 0);
    const high = Math.min(truncate ? Math.ceil(at(1)) : at(1), 15);
    const want = Array.from({ length: 8 }, (_, i) => {
      const f = 500 ** ((-2 * i) / 16);
      const keep = 1 - Math.min(1, Math.max(0, (i - low) / (high - low)));
      return (f / 4) * (1 - keep) + f * keep;
    });
    close(ropeFrequencies(config, 10), want);
    expect(config).toMatchObject({ attentionFactor: 0.1 * Math.log(4) + 1 });
  });
});

describe('configuration', () => {
  it('has the same meaning in the spelling of transformers 4 and 5', () => {
    const five = read({ rope_parameters: { rope_type: 'linear', factor: 2, rope_theta: 500 } });
    expect(five).toEqual({ type: 'linear', factor: 2, theta: 500, dim: 16 });
    expect(read({ rope_theta: 500, rope_scaling: { type: 'linear', factor: 2 } })).toEqual(five);
    expect(read({ rope_theta: 500, rope_scaling: { rope_type: 'linear', factor: 2 } })).toEqual(
      five,
    );
    expect(read({ rope_scaling: null })).toEqual({ type: 'default', theta: 10_000, dim: 16 });
    expect(read({})).toEqual({ type: 'default', theta: 10_000, dim: 16 });
  });

  it('may give an attention factor, and defaults to the trained length', () => {
    const yarn = read(
      { rope_scaling: { rope_type: 'yarn', factor: 4, attention_factor: 1.5 } },
      77,
    );
    expect(yarn).toMatchObject({
      attentionFactor: 1.5,
      originalMaxPositions: 77,
      betaFast: 32,
      betaSlow: 1,
    });
  });

  it.each([
    [{ rope_parameters: [] }, /rope_parameters must be an object/],
    [{ rope_scaling: 'linear' }, /rope_scaling must be an object/],
    [{ rope_scaling: { type: 'su' } }, /rope_type "su" is not supported/],
    [{ rope_scaling: { type: 'constructor' } }, /rope_type "constructor" is not supported/],
    [{ rope_scaling: { type: 'linear', factor: -1 } }, /rope_scaling\.factor/],
    [{ rope_scaling: { type: 'llama3', factor: 8 } }, /rope_scaling\.low_freq_factor/],
    [{ rope_scaling: { type: 'default', factor: 8 } }, /rope_scaling\.factor/],
  ])('refuses %j', (keys, message) => {
    expect(() => read(keys)).toThrow(message);
  });
});

describe('tables', () => {
  it('grow with the longest position, and are reused while they suffice', () => {
    const cache = new RopeCache({ ...base, type: 'default' }, 'f64');
    const first = cache.tables(100);
    expect(first.cos.shape).toEqual([128, 8]);
    expect(cache.tables(128)).toBe(first);
    const { cos, sin } = cache.tables(129);
    expect(cos.shape).toEqual([256, 8]);
    const [c, s] = [values(cos), values(sin)];
    expect(c[200 * 8 + 3]).toBe(Math.cos(200 * 10_000 ** (-3 / 8)));
    expect(s[200 * 8 + 3]).toBe(Math.sin(200 * 10_000 ** (-3 / 8)));
  });

  it('of dynamic ropes depend on the longest sequence of the batch', () => {
    const cache = new RopeCache({ ...base, type: 'dynamic', factor: 4, maxPositions: 32 }, 'f64');
    const short = cache.tables(20);
    expect(cache.tables(32)).toBe(short);
    const at = (length: number): number => values(cache.tables(length).cos)[8 + 5] as number;
    const trained = at(10);
    const long = at(64);
    expect(long).not.toBe(trained);
    expect(at(50)).not.toBe(long);
    expect(at(12)).toBe(trained);
  });
});
