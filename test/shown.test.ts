// Values as messages show them: JSON, cut, and never an error.
import { describe, expect, it } from 'vitest';
import { zeros } from '../lib/ops/index.ts';
import {
  isPrintable,
  oneLine,
  printable,
  printableJson,
  printableLines,
  printableStack,
  shown,
  withoutControls,
} from '../lib/shown.ts';

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

describe('a text of a file, a server or a client', () => {
  const kHostile = 'a\u001b[2J\r\n\terror: b\u009b1m\u202e\u2028\u0000\u{e0041}\ud800c';
  const kShown = 'a\\u001b[2J\\r\\n\\terror: b\\u009b1m\\u202e\\u2028\\u0000\\udb40\\udc41\\ud800c';

  it('is one line in which invisible characters are escapes', () => {
    expect(oneLine(kHostile)).toBe(kShown);
    expect(oneLine(kShown)).toBe(kShown);
    expect([isPrintable(kHostile), isPrintable(kShown)]).toEqual([false, true]);
    expect(printable(kHostile)).toBe(kShown);
    expect(printable('x'.repeat(1e6))).toBe(`${'x'.repeat(200)}...`);
    expect(printable('größer', 3)).toBe('grö...');
    expect(printable('ab\u{1f40b}', 3)).toBe('ab...');
    expect(shown('\u009b\u202e')).toBe('"\\u009b\\u202e"');
  });

  it('keeps line breaks and tabs in a report, and letters and emoji in the text of a model', () => {
    expect(printableLines('a\n\tb\r\u001bc')).toBe('a\n\tb\\r\\u001bc');
    const family = '\u{1f468}\u200d\u{1f469}\u200d\u{1f467} می\u200cخواهم\n\t';
    expect(withoutControls(family)).toBe(family);
    expect(withoutControls('\u001b]0;x\u0007\u009b2J\r\b\u202ez')).toBe(
      '\\u001b]0;x\\u0007\\u009b2J\\r\\u0008\\u202ez',
    );
  });

  it('is the same value in JSON', () => {
    const value = { [kHostile]: [kHostile, 1] };
    expect(isPrintable(printableJson(value))).toBe(true);
    expect(JSON.parse(printableJson(value, 2))).toEqual(value);
    expect(printableJson(value, 2).split('\n')).toHaveLength(6);
  });

  it('forges no call in the stack of an error', () => {
    const error = new TypeError('x\n    at forged (file.js:1:1)\u001b');
    const [head, first, ...rest] = printableStack(error).split('\n');
    expect(head).toBe('TypeError: x\\n    at forged (file.js:1:1)\\u001b');
    expect(first).toMatch(/^ +at .*shown\.test/);
    expect(rest.length).toBeGreaterThan(0);
    expect(printableStack('a\nb')).toBe('a\\nb');
  });
});
