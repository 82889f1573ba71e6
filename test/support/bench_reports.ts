/** Benchmark reports with made-up figures for tests. */
import type {
  GrowthSeries,
  Machine,
  MicroRow,
  PissaRow,
  Report,
  Row,
  StepRow,
} from '../../bench/harness/types.ts';

export const kMachine: Machine = {
  cpu: 'Some CPU',
  ...{ cores: 2, threads: 2, features: ['avx2'], memoryBytes: 2 ** 34 },
  ...{ system: 'Linux 6', node: 'v20.0.0', balora: '0.1.0' },
  ...{ peakF32: 4e11, peakBf16: 2e12, memoryBandwidth: 3e10 },
};

export function stepRow(changes: Partial<StepRow> = {}): StepRow {
  const spread = { median: 2, low: 1.9, high: 2.1, samples: 5 };
  return {
    kind: 'step',
    ...{ name: 'balora-4x512', dtype: 'bf16', shape: 'smollm2-135m' },
    workload: {
      ...{ label: '4x512', method: 'balora', rank: 16, batch: 4, length: 512 },
      ...{ accumulation: 1, data: 'random' },
    },
    ...{ tokens: 2048, supervisedTokens: 1024, tokensPerSecond: 1024 },
    rate: { median: 1024, low: 975, high: 1078, samples: 5 },
    seconds: spread,
    split: {
      ...{ forward: 0.5, teacher: 0.3, losses: 0.3, backward: 0.8 },
      ...{ optimizer: 0.05, data: 0.01, other: 0.04 },
    },
    ...{ peakBytes: 2 ** 30, flopsPerToken: 8e8, rooflineSeconds: 1, rooflineShare: 0.5 },
    gemmPeak: 2e12,
    disturbance: { others: 0, stolen: 0 },
    notes: ['random weights'],
    ...changes,
  };
}

export function microRow(changes: Partial<MicroRow> = {}): MicroRow {
  return {
    kind: 'micro',
    ...{ name: 'micro-rope', dtype: 'bf16', shapes: 'x 2048x9x64' },
    seconds: { median: 1e-4, low: 9e-5, high: 2e-4, samples: 9 },
    ...{ work: 1e6, unit: 'byte', rate: 1e10, ceilingShare: 0.33 },
    ...changes,
  };
}

export function pissaRow(changes: Partial<PissaRow> = {}): PissaRow {
  return {
    kind: 'pissa',
    ...{ name: 'pissa-converged', dtype: 'bf16', modules: 210, rank: 16 },
    seconds: { median: 2, low: 1.9, high: 2.1, samples: 3 },
    ...{ capturedEnergy: 0.25, peakBytes: 2 ** 30, notes: [] },
    ...changes,
  };
}

/** A growth series over two lengths with the given seconds. */
export function growthOf(...seconds: [number, number]): GrowthSeries {
  const fit = { form: 'linear', a: 0, b: 1, r2: 1, formula: 'x' } as const;
  return {
    ...{ shape: 'smollm2-135m', dtype: 'bf16', axis: 'length', fixed: 'batch 1, r 16' },
    points: seconds.map((y, i) => ({ x: 256 << i, seconds: y, peakBytes: 2 ** 30 })),
    ...{ time: fit, memory: fit },
  };
}

export function report(rows: readonly Row[], changes: Partial<Report> = {}): Report {
  return {
    ...{ format: 1, date: '2026-01-01T00:00:00.000Z', machine: kMachine },
    ...{ warnings: [], rows, growth: [] },
    ...changes,
  };
}
