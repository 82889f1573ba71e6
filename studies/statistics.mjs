// Mean and deviation over seeds, and rows of a Markdown table.
import { existsSync, readFileSync } from 'node:fs';

/** The lines of a JSON Lines file; none where there is no file. */
export function readLines(path) {
  if (!existsSync(path)) return [];
  return readFileSync(path, 'utf8').split('\n').filter(Boolean).map(JSON.parse);
}

/** Mean and sample standard deviation (0 for one value) of n values; null for none. */
export function statistics(values) {
  if (values.length === 0) return null;
  const mean = values.reduce((sum, v) => sum + v, 0) / values.length;
  const squares = values.reduce((sum, v) => sum + (v - mean) ** 2, 0);
  return {
    mean,
    deviation: values.length > 1 ? Math.sqrt(squares / (values.length - 1)) : 0,
    n: values.length,
  };
}

/** `0.775 ± 0.015`; one value has no deviation. */
export function shown(s, digits = 3) {
  if (s === null) return '';
  return s.mean.toFixed(digits) + (s.n > 1 ? ` ± ${s.deviation.toFixed(digits)}` : '');
}

export const line = (cells) => `| ${cells.join(' | ')} |`;
