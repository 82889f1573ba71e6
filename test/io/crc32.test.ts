import { expect, it } from 'vitest';
import { crc32, crc32ByTable } from '../../lib/io/crc32.ts';

it.each([
  ['', 0],
  ['123456789', 0xcbf43926], // the check value that CRC-32's definition is quoted with
  ['The quick brown fox jumps over the lazy dog', 0x414fa339],
])('%j has its published checksum, from Node and from the table', (text, expected) => {
  const bytes = new TextEncoder().encode(text);
  expect(crc32ByTable(bytes)).toBe(expected);
  expect(crc32(bytes)).toBe(expected);
});

it('the table and Node agree on every byte', () => {
  const bytes = Uint8Array.from({ length: 1000 }, (_, i) => (i * 37) >> 2);
  expect(crc32ByTable(bytes)).toBe(crc32(bytes));
});
