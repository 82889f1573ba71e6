import { expect, it } from 'vitest';
import { capitalize, countWords, strip, stripEnd } from '../../lib/eval/python_text.ts';

it('strips the blanks of Python', () => {
  expect(stripEnd(' a\u3000\x1c\n ')).toBe(' a');
  expect(strip('\x85 a b\t')).toBe('a b');
  expect(stripEnd('a\uFEFF')).toBe('a\uFEFF');
  expect(stripEnd(' '.repeat(200_000))).toBe('');
});

it('counts an empty piece at an end', () => {
  expect(countWords('a b')).toBe(2);
  expect(countWords(' a  b\n')).toBe(4);
  expect(countWords('')).toBe(1);
});

it('capitalizes the first letter alone', () => {
  expect(capitalize('hE SAID')).toBe('He said');
  expect(capitalize('')).toBe('');
  expect(capitalize('éA')).toBe('Éa');
});
