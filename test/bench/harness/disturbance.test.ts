// Warnings about disturbed measurements: processor time of others, peak rates that changed.
import { describe, expect, it } from 'vitest';
import {
  disturbanceBetween,
  type IdleFacts,
  idleWarnings,
  parseChildSeconds,
  parseCpuSeconds,
  watched,
} from '../../../bench/harness/disturbance.ts';
import { cpuFeatures } from '../../../bench/harness/machine.ts';
import { kMachine, microRow } from '../../support/bench_reports.ts';

const kIdle: IdleFacts = {
  ...{ first: { others: 0.01, stolen: 0 }, before: kMachine, after: kMachine },
  rows: [{ name: 'balora-4x512', disturbance: { others: 0.01, stolen: 0 } }],
};

describe('processor time', () => {
  it('is read from /proc/stat', () => {
    const text = 'cpu  100 20 30 4000 50 6 7 80 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\n';
    expect(parseCpuSeconds(text)).toEqual({ busy: 1.63, idle: 40.5, stolen: 0.8 });
    expect(parseCpuSeconds('intr 1 2 3')).toBeNull();
  });

  it('is used by others where it is not our own', () => {
    const before = { busy: 100, idle: 100, stolen: 1 };
    const after = { busy: 110, idle: 109, stolen: 2 }; // 20 core seconds
    expect(disturbanceBetween(before, after, 10)).toEqual({ others: 0.05, stolen: 0.05 });
    expect(disturbanceBetween(before, after, 6).others).toBeCloseTo(0.25, 12);
    expect(disturbanceBetween(before, before, 0)).toEqual({ others: 0, stolen: 0 });
  });

  it('of ended children counts as our own', () => {
    const text = '12 (a (b) c) R 1 2 3 4 5 6 7 8 9 10 11 12 150 50 20 0 1';
    expect(parseChildSeconds(text)).toBe(2);
    expect(parseChildSeconds('')).toBe(0);
  });

  it('of others is recorded with every kind of row', async () => {
    const row = await watched(async () => microRow());
    expect(row).toEqual({ ...microRow(), disturbance: expect.any(Object) });
    expect(row.disturbance?.others).toBeGreaterThanOrEqual(0);
  });
});

describe('idleWarnings', () => {
  it('are none on an idle machine', () => {
    expect(idleWarnings(kIdle)).toEqual([]);
  });

  it('name a disturbance before the run, the disturbed rows, and peaks that changed', () => {
    const warnings = idleWarnings({
      ...kIdle,
      first: { others: 0.6, stolen: 0 },
      after: { ...kMachine, peakBf16: 0.8 * kMachine.peakBf16, peakF32: 1.05 * kMachine.peakF32 },
      rows: [
        { name: 'lora-gsm8k', disturbance: { others: 0.4, stolen: 0.2 } },
        { name: 'micro-rope', disturbance: { others: 0.04, stolen: 0 } },
        { name: 'micro-add', disturbance: { others: 0.12, stolen: 0 } },
        { name: 'of an older report' },
      ],
    });
    expect(warnings).toEqual([
      'before the run other processes had 60% of the processor',
      'other processes had a share of the processor during lora-gsm8k 40% (20% stolen), micro-add 12%',
      'the bf16 product peak after the run was 0.80 times that before it',
    ]);
  });
});

describe('cpuFeatures', () => {
  it('lists the instruction sets that kernels check', () => {
    const text = 'processor : 0\nflags\t\t: fpu sse2 avx2 avx512_bf16 amx_bf16 hypervisor\n';
    expect(cpuFeatures(text)).toEqual(['avx2', 'avx512_bf16', 'amx_bf16']);
    expect(cpuFeatures('')).toEqual([]);
  });
});
