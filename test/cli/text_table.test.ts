import { expect, it } from 'vitest';
import { textTable } from '../../lib/cli/text_table.ts';

it('lays columns side by side, each as wide as its widest cell', () => {
  const rows = [
    ['', 'loss', 'time'],
    ['LoRA', '3.25', '10 s'],
    ['BA-LoRA', '12.5', '9 s'],
  ];
  expect(textTable(rows)).toBe(
    ['         loss  time', 'LoRA     3.25  10 s', 'BA-LoRA  12.5  9 s'].join('\n'),
  );
  expect(textTable(rows, 'lr')).toBe(
    ['         loss  time', 'LoRA     3.25  10 s', 'BA-LoRA  12.5   9 s'].join('\n'),
  );
  expect(textTable(rows, 'rl')).toBe(
    ['         loss  time', '   LoRA  3.25  10 s', 'BA-LoRA  12.5  9 s'].join('\n'),
  );
});

it('adds no blanks after the last cell of a row, and keeps those of the cell itself', () => {
  expect(textTable([['a', 'b ', ''], ['aa'], ['', '', '']], 'lr')).toBe('a   b \naa\n');
  expect(textTable([])).toBe('');
});

it('shows codes in a cell, which are a name of somebody else', () => {
  expect(
    textTable([
      ['\u001b[32mok', 'a'],
      ['failed', 'b'],
    ]),
  ).toBe('\\u001b[32mok  a\nfailed        b');
});
