/** Comparison of two reports: the ratio of each figure, and whether it is a regression beyond a margin. */
import { z } from 'zod';
import { FormatError } from '../../lib/errors.ts';
import { readText } from '../../lib/io/regular_file.ts';
import type { Report, Row } from './types.ts';

interface Comparison {
  readonly name: string;
  readonly dtype: string;
  /** Name of the compared figure: tokens/s, peak memory, seconds or captured energy. */
  readonly what: string;
  readonly before: number;
  readonly after: number;
  /** after / before. */
  readonly ratio: number;
  /** Whether `after` is worse by more than the margin; for captured energy, less by more than kEnergyTolerance. */
  readonly regression: boolean;
}

export interface ComparedReports {
  readonly comparisons: readonly Comparison[];
  /** Rows and growth points of the old report that the new one lacks or could not measure. */
  readonly missing: readonly string[];
  /** Reasons to doubt the ratios. */
  readonly warnings: readonly string[];
}

/**
 * Largest loss of captured energy (a share, between 0 and 1) that is no regression: a converged search may itself miss 2e-5 of the
 * squared norm.
 */
export const kEnergyTolerance = 5e-5;

/** A figure of which more, or less, is better. */
interface Figure {
  readonly name: string;
  readonly dtype: string;
  readonly what: string;
  readonly value: number;
  /** Whether `after` is worse than `before` by more than the margin. */
  readonly worse: (before: number, after: number, margin: number) => boolean;
}

type Direction = Figure['worse'];
const more: Direction = (before, after, margin) => after / before < 1 - margin;
const less: Direction = (before, after, margin) => after / before > 1 + margin;
const noLoss: Direction = (before, after) => after < before - kEnergyTolerance;

function figuresOf({ rows, growth }: Pick<Report, 'rows' | 'growth'>): Figure[] {
  const ofRows = rows.flatMap((row) => {
    const { name, dtype } = row;
    return figuresOfRow(row).map((figure) => ({ name, dtype, ...figure }));
  });
  const ofPoints = growth.flatMap(({ shape, dtype, axis, baseFormat, points }) =>
    points.flatMap(({ x, seconds, peakBytes }) => {
      const form = baseFormat === undefined ? '' : `-${baseFormat}`;
      const name = `growth-${shape}${form}-${axis} ${x}`;
      return [
        { name, dtype, what: 'seconds', value: seconds, worse: less },
        { name, dtype, what: 'peak memory', value: peakBytes, worse: less },
      ];
    }),
  );
  return [...ofRows, ...ofPoints];
}

function figuresOfRow(row: Row): Omit<Figure, 'name' | 'dtype'>[] {
  switch (row.kind) {
    case 'step':
      return [
        { what: 'tokens/s', value: row.tokensPerSecond, worse: more },
        { what: 'peak memory', value: row.peakBytes, worse: less },
      ];
    case 'pissa':
      return [
        { what: 'seconds', value: row.seconds.median, worse: less },
        { what: 'captured energy', value: row.capturedEnergy, worse: noLoss },
      ];
    case 'micro':
    case 'start':
      return [{ what: 'seconds', value: row.seconds.median, worse: less }];
    default:
      return []; // the two rows of a ratio are compared themselves
  }
}

const rowOf = ({ name, dtype }: Figure): string => `${name} ${dtype}`;
const keyOf = (figure: Figure): string => `${rowOf(figure)} ${figure.what}`;

/** Compares two reports. @param margin share by which a figure may be worse: 0.1 is a tenth */
export function compareReports(before: Report, after: Report, margin: number): ComparedReports {
  const old = figuresOf(before);
  const values = new Map(old.map((figure) => [keyOf(figure), figure.value]));
  const common = figuresOf(after).filter((figure) => values.has(keyOf(figure)));
  const comparisons = common.map((figure): Comparison => {
    const was = values.get(keyOf(figure)) as number;
    const { name, dtype, what, value, worse } = figure;
    const regression = worse(was, value, margin);
    return { name, dtype, what, before: was, after: value, ratio: value / was, regression };
  });
  const compared = new Set(common.map(rowOf));
  const missing = [...new Set(old.map(rowOf))].filter((row) => !compared.has(row));
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
  growth: z.array(z.looseObject({ shape: z.string(), points: z.array(z.looseObject({})) })),
});

/** Reads a report from a file. @throws FormatError where the file is not a report */
export async function readReport(path: string): Promise<Report> {
  const text = await readText(path);
  let json: unknown;
  try {
    json = JSON.parse(text);
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
