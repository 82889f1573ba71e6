// Values as messages show them: JSON, cut, and never an error.
import { describe, expect, it } from 'vitest';
import { zeros } from '../lib/ops/index.ts';
import { shown } from '../lib/shown.ts';

const round: Record<string, unknown> = {};
round.self = round;
let deep: unknown = [];
for (let i = 0; i < 100_000; i++) deep = [deep];

describe('shown', () => {
  it.each<[unknown, string]>([
    ['a "text"\n', '"a \\"text\\"\\n"'],
    [0.5, '0.5'],
    [Number.NaN, 'NaN'],
    [Number.NEGATIVE_INFINITY, '-Infinity'],
    [5n, '5n'],
    [true, 'true'],
    [null, 'null'],
    [undefined, 'nothing'],
    [() => 1, 'a function'],
    [Symbol('x'), 'a symbol'],
    [{ a: [1, { b: 2n }], c: Number.NaN }, '{"a":[1,{"b":"2n"}],"c":"NaN"}'],
    [[undefined, () => 1], '["nothing","a function"]'],
    [Object.create(null), '{}'],
    [new Map(), 'a Map'],
    [Int32Array.of(1), 'an Int32Array'],
    [{ tensor: zeros([1]) }, '{"tensor":"a Tensor"}'],
    [new AbortController().signal, 'an AbortSignal'],
    ['\ud800', '"\\ud800"'],
  ])('%o is %s', (value, text) => {
    expect(shown(value)).toBe(text);
  });

  it('names what contains itself, nests without end, or has code that throws', () => {
    const odd = {
      toJSON: () => {
        throw new Error('no');
      },
    };
    expect(shown(round)).toBe('an object');
    expect(shown(deep)).toBe('a list');
    expect(shown(odd)).toBe('an object');
    expect(shown(new Proxy({}, { ownKeys: () => [1] as never }))).toBe('an object');
  });

  it('cuts long values', () => {
    expect(shown('x'.repeat(1000))).toBe(`"${'x'.repeat(199)}...`);
    expect(shown([1, 2, 3], 4)).toBe('[1,2...');
  });
});
