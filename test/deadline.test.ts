// Work that never ends is stopped in the middle; other work runs as if it were called.
import { expect, it } from 'vitest';
import { patternProblem, withDeadline } from '../lib/deadline.ts';
import { processorMs } from './support/limits.ts';

const late = () => new Error('late');
const kBacktracks = /^(a+)+$/;
const forever = () => kBacktracks.test(`${'a'.repeat(40)}!`);

it('stops a regular expression that backtracks, and a loop, near the deadline', () => {
  for (const work of [
    forever,
    () => {
      for (;;);
    },
  ]) {
    const begin = processorMs();
    expect(() => withDeadline(100, work, late)).toThrow('late');
    expect(processorMs() - begin).toBeLessThan(5000);
  }
  expect(withDeadline(100, () => 7, late)).toBe(7);
});

it('returns what the work returns and throws what it throws', () => {
  const value = { a: 1 };
  expect(withDeadline(1000, () => value, late)).toBe(value);
  const error = new TypeError('own');
  const failing = () => {
    throw error;
  };
  expect(() => withDeadline(1000, failing, late)).toThrow(error);
});

it('stops work within work by the outer deadline', () => {
  const inner = () => withDeadline(1e6, forever, () => new Error('inner'));
  expect(() => withDeadline(100, inner, late)).toThrow('late');
  expect(withDeadline(1000, () => withDeadline(1000, () => 5, late), late)).toBe(5);
});

it('knows the patterns that V8 cannot compile or ends the process over', () => {
  const nested = (depth: number, open = '(?:') => `${open.repeat(depth)}x${')*'.repeat(depth)}`;
  expect(patternProblem('x'.repeat(20_001))).toMatch(/^has 20001 characters, more than the 20000/);
  expect(patternProblem(nested(101))).toMatch(/^has groups within groups/);
  for (const pattern of [
    nested(100),
    '(x)'.repeat(1000),
    '\\('.repeat(200),
    `[${'('.repeat(200)}]`,
  ]) {
    expect(patternProblem(pattern)).toBeNull();
    expect(new RegExp(pattern).test('model.layers.0')).toBeTypeOf('boolean');
  }
});
