/**
 * Tables of text, for a terminal or a pipe: columns side by side, two spaces between them. All tables that the project prints
 * come from here, the benchmark's, the demo's and those of `npm test` too.
 */
import { stripVTControlCharacters } from 'node:util';

const kGap = '  ';

/** The columns that a cell takes; colours take none. */
const widthOf = (cell: string): number => stripVTControlCharacters(cell).length;

/**
 * Lays rows out as a table. A row may have fewer cells than others, and no blanks follow its last one.
 * @param align a letter a column, `l` for flush left and `r` for flush right; the last one stands for all that follow
 */
export function textTable(rows: readonly (readonly string[])[], align = 'l'): string {
  const widths: number[] = [];
  for (const row of rows) {
    row.forEach((cell, c) => {
      widths[c] = Math.max(widths[c] ?? 0, widthOf(cell));
    });
  }
  return rows
    .map((row) => {
      const last = row.findLastIndex((cell) => cell !== '');
      const cells = row.slice(0, last + 1).map((cell, c) => {
        const blanks = ' '.repeat((widths[c] as number) - widthOf(cell));
        if ((align[c] ?? align.at(-1)) === 'r') return blanks + cell;
        return c === last ? cell : cell + blanks;
      });
      return cells.join(kGap);
    })
    .join('\n');
}
