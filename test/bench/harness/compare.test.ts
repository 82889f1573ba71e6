// Comparison of two reports: ratios, regressions beyond the margin, missing rows, different machines.
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { compareReports, kEnergyTolerance, readReport } from '../../../bench/harness/compare.ts';
import { comparisonText } from '../../../bench/harness/tables.ts';
import { FormatError } from '../../../lib/errors.ts';
import {
  growthOf,
  kMachine,
  microRow,
  pissaRow,
  report,
  stepRow,
} from '../../support/bench_reports.ts';

describe('compareReports', () => {
  it('reports a regression only beyond the margin, where more is worse or where less is', () => {
    const before = report([stepRow(), microRow()]);
    const after = report([
      stepRow({ tokensPerSecond: 1024 * 0.91, peakBytes: 1.2 * 2 ** 30 }),
      microRow({ seconds: { median: 1.05e-4, low: 1e-4, high: 2e-4, samples: 9 } }),
    ]);
    const { comparisons } = compareReports(before, after, 0.1);
    expect(comparisons.map(({ name, what, regression }) => [name, what, regression])).toEqual([
      ['balora-4x512', 'tokens/s', false],
      ['balora-4x512', 'peak memory', true],
      ['micro-rope', 'seconds', false],
    ]);
    expect(comparisons[0]?.ratio).toBeCloseTo(0.91, 12);
    const strict = compareReports(before, after, 0.04);
    expect(strict.comparisons.every(({ regression }) => regression)).toBe(true);
    expect(comparisonText(strict, 0.04)).toContain('3 of 3 figures are worse by more than 4%');
  });

  it('never reports an improvement as a regression', () => {
    const after = report([stepRow({ tokensPerSecond: 4000, peakBytes: 2 ** 28 })]);
    const { comparisons } = compareReports(report([stepRow()]), after, 0);
    expect(comparisons.some(({ regression }) => regression)).toBe(false);
  });

  it('compares rows of the same dtype, and lists missing rows', () => {
    const before = report([stepRow(), stepRow({ dtype: 'f32' }), microRow()]);
    const after = report([stepRow({ dtype: 'f32', tokensPerSecond: 512 })]);
    const { comparisons, missing } = compareReports(before, after, 0.1);
    expect(comparisons.map(({ dtype, ratio }) => [dtype, ratio])).toEqual([
      ['f32', 0.5],
      ['f32', 1],
    ]);
    expect(missing).toEqual(['balora-4x512 bf16', 'micro-rope bf16']);
  });

  it('compares the points of growth series', () => {
    const before = report([], { growth: [growthOf(1, 2)] });
    const after = report([], { growth: [growthOf(1.05, 2.5)] });
    const { comparisons, missing } = compareReports(before, after, 0.1);
    const name = 'growth-smollm2-135m-length';
    expect(comparisons.map(({ name, what, regression }) => [name, what, regression])).toEqual([
      [`${name} 256`, 'seconds', false],
      [`${name} 256`, 'peak memory', false],
      [`${name} 512`, 'seconds', true],
      [`${name} 512`, 'peak memory', false],
    ]);
    expect(missing).toEqual([]);
    expect(compareReports(before, report([]), 0.1).missing).toEqual([
      `${name} 256 bf16`,
      `${name} 512 bf16`,
    ]);
  });

  it('reports a loss of captured energy as a regression, whatever the margin', () => {
    const energyOf = (lost: number) => {
      const after = report([pissaRow({ capturedEnergy: 0.25 - lost })]);
      const { comparisons } = compareReports(report([pissaRow()]), after, 10);
      return comparisons.find(({ what }) => what === 'captured energy')?.regression;
    };
    expect(energyOf(1.1 * kEnergyTolerance)).toBe(true);
    expect(energyOf(0.9 * kEnergyTolerance)).toBe(false);
    expect(energyOf(-0.1)).toBe(false);
  });

  it('warns where the machines differ', () => {
    const other = report([stepRow()], { machine: { ...kMachine, cpu: 'Another' } });
    const { warnings } = compareReports(report([stepRow()]), other, 0.1);
    expect(warnings).toEqual([expect.stringContaining('cpu was Some CPU, is Another')]);
    expect(compareReports(other, other, 0.1).warnings).toEqual([]);
  });
});

describe('readReport', () => {
  it('reads a written report, and names a file that is not a report', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'balora-'));
    const path = join(folder, 'x.json');
    try {
      const written = report([stepRow(), microRow()]);
      await writeFile(path, JSON.stringify(written));
      expect(await readReport(path)).toEqual(written);
      await writeFile(path, '{ "format": 2 }');
      await expect(readReport(path)).rejects.toThrow(/no benchmark report: format/);
      await writeFile(path, 'x');
      await expect(readReport(path)).rejects.toThrow(FormatError);
      await expect(readReport(join(folder, 'none'))).rejects.toThrow(/none/);
    } finally {
      await rm(folder, { recursive: true });
    }
  });
});
