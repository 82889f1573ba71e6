/**
 * Tables of text for terminals and pipes, with two spaces between columns. The benchmark, the demo and the test report use them
 * as well.
 */
import { oneLine } from '../shown.ts';

const kGap = '  ';

/**
 * Lays rows out as a table. A row may have fewer cells than others, and its last cell is not padded.
 * @param align one letter for each column, `l` for flush left or `r` for flush right; the last letter applies to all
 *   further columns
 */
export function textTable(cells: readonly (readonly string[])[], align = 'l'): string {
  // A name in a file, which many cells are, makes no row of its own.
  const rows = cells.map((row) => row.map(oneLine));
  const widths: number[] = [];
  for (const row of rows) {
    row.forEach((cell, c) => {
      widths[c] = Math.max(widths[c] ?? 0, cell.length);
    });
  }
  return rows
    .map((row) => {
      const last = row.findLastIndex((cell) => cell !== '');
      const cells = row.slice(0, last + 1).map((cell, c) => {
        const blanks = ' '.repeat((widths[c] as number) - cell.length);
        if ((align[c] ?? align.at(-1)) === 'r') return blanks + cell;
        return c === last ? cell : cell + blanks;
      });
      return cells.join(kGap);
    })
    .join('\n');
}
