/** Two reports side by side: ratios row by row, and which of them are regressions past a margin. */
import { readFile } from 'node:fs/promises';
import { z } from 'zod';
import { FormatError } from '../errors.ts';
import type { Report, Row } from './types.ts';

export interface Comparison {
  readonly name: string;
  readonly dtype: string;
  /** What is compared: tokens/s, peak memory, seconds. */
  readonly what: string;
  readonly before: number;
  readonly after: number;
  /** after / before. */
  readonly ratio: number;
  /** Worse by more than the margin. */
  readonly regression: boolean;
}

export interface ComparedReports {
  readonly comparisons: readonly Comparison[];
  /** Rows of the old report that the new one lacks or could not measure. */
  readonly missing: readonly string[];
  /** What makes the ratios doubtful. */
  readonly warnings: readonly string[];
}

/** The figures of a row that have a better direction. */
function figures(row: Row): { what: string; value: number; moreIsBetter: boolean }[] {
  switch (row.kind) {
    case 'step':
      return [
        { what: 'tokens/s', value: row.tokensPerSecond, moreIsBetter: true },
        { what: 'peak memory', value: row.peakBytes, moreIsBetter: false },
      ];
    case 'micro':
    case 'pissa':
    case 'start':
      return [{ what: 'seconds', value: row.seconds.median, moreIsBetter: false }];
    default:
      return []; // a ratio has no better direction of its own, and its rows are compared themselves
  }
}

const keyOf = (row: Row): string => `${row.name} ${row.dtype}`;

/** @param margin share by which a figure may be worse: 0.1 is a tenth */
export function compareReports(before: Report, after: Report, margin: number): ComparedReports {
  const old = new Map(before.rows.map((row) => [keyOf(row), row]));
  const comparisons: Comparison[] = [];
  for (const row of after.rows) {
    const earlier = old.get(keyOf(row));
    if (earlier === undefined) continue;
    const were = figures(earlier);
    for (const { what, value, moreIsBetter } of figures(row)) {
      const was = were.find((figure) => figure.what === what);
      if (was === undefined) continue;
      const ratio = value / was.value;
      const regression = moreIsBetter ? ratio < 1 - margin : ratio > 1 + margin;
      const { name, dtype } = row;
      comparisons.push({ name, dtype, what, before: was.value, after: value, ratio, regression });
    }
  }
  const compared = new Set(comparisons.map(({ name, dtype }) => `${name} ${dtype}`));
  const missing = before.rows
    .filter((row) => figures(row).length > 0 && !compared.has(keyOf(row)))
    .map(keyOf);
  return { comparisons, missing, warnings: differences(before, after) };
}

function differences(before: Report, after: Report): string[] {
  const keys = ['cpu', 'threads', 'cores'] as const;
  const changed = keys
    .filter((key) => before.machine[key] !== after.machine[key])
    .map((key) => `${key} was ${before.machine[key]}, is ${after.machine[key]}`);
  return changed.length === 0
    ? []
    : [`the reports are of different machines: ${changed.join('; ')}`];
}

const kReport = z.looseObject({
  format: z.literal(1),
  date: z.string(),
  machine: z.looseObject({ cpu: z.string(), threads: z.number(), cores: z.number() }),
  rows: z.array(z.looseObject({ kind: z.string(), name: z.string(), dtype: z.string() })),
});

/** A report that was written before. @throws FormatError for a file that is none */
export async function readReport(path: string): Promise<Report> {
  let json: unknown;
  try {
    json = JSON.parse(await readFile(path, 'utf8'));
  } catch (error) {
    throw new FormatError(`${path}: ${(error as Error).message}`, { path });
  }
  const parsed = kReport.safeParse(json);
  if (parsed.success) return json as Report;
  const issue = parsed.error.issues[0] as z.core.$ZodIssue;
  throw new FormatError(
    `${path}: is no benchmark report: ${issue.path.join('.')}: ${issue.message}`,
    {
      path,
    },
  );
}
