/** Measures kernel rows, one after the other in one process. */
import {
  memoryStats,
  resetPeakMemory,
  synchronize,
  synchronizeSync,
} from '../../../lib/runtime.ts';
import { scope } from '../../../lib/tensor.ts';
import { type Calibration, watched } from '../disturbance.ts';
import { type ModelShape, shapeNamed, sizesOf } from '../shapes.ts';
import { spread } from '../statistics.ts';
import { timeOps } from '../timing.ts';
import type { BenchDType, MicroRow } from '../types.ts';
import {
  disposeOperands,
  type MicroCase,
  type MicroContext,
  type MicroEntry,
  opOf,
} from './kit.ts';
import { kLargeMicroTable, kMicroTable } from './table.ts';

export interface MicroInput {
  /** Names of rows in kMicroTable. */
  readonly names: readonly string[];
  readonly shape: string | ModelShape;
  readonly dtype: BenchDType;
  /** Peak rates that the rates are compared with. */
  readonly ceilings: Calibration;
  /** Rows of the micro-batch. Default 2048, in four sequences. */
  readonly rows?: number;
  /** Makes the large rows small, to try the benchmark itself. */
  readonly trial?: boolean;
}

export const kMicroNames = kMicroTable.map(({ name }) => name);
/** Rows that are too large for a CPU, and therefore in no group. */
export const kLargeMicroNames = kLargeMicroTable.map(({ name }) => name);

export async function microRows(input: MicroInput): Promise<MicroRow[]> {
  const { names, shape, dtype, ceilings, rows = 2048, trial = false } = input;
  const context: MicroContext = {
    sizes: sizesOf(typeof shape === 'string' ? shapeNamed(shape) : shape),
    dtype,
    ...{ rows, sequences: 4, lossRows: rows / 2, rank: 16 },
    large: trial ? { rows: 64, v: 1024 } : { rows: 8192, v: 128 << 10 },
  };
  const result: MicroRow[] = [];
  for (const entry of [...kMicroTable, ...kLargeMicroTable]) {
    if (!names.includes(entry.name)) continue;
    result.push(await watched(() => microRow(entry, context, ceilings)));
  }
  return result;
}

async function microRow(
  entry: MicroEntry,
  context: MicroContext,
  ceilings: Calibration,
): Promise<MicroRow> {
  const { dtype } = context;
  const one = entry.make(context);
  const samples = await timeOps(one.run, {
    prepare: one.prepare,
    ops: [opOf(entry)],
    least: 3,
    most: 20,
  });
  const extraBytes = await extraMemory(one);
  disposeOperands();
  const seconds = spread(samples);
  const rate = one.work / seconds.median;
  const peak = (entry.peak ?? dtype) === 'f32' ? ceilings.peakF32 : ceilings.peakBf16;
  const ceiling = one.unit === 'flop' ? peak : ceilings.memoryBandwidth;
  const { shapes, work, unit } = one;
  const { name } = entry;
  return {
    kind: 'micro',
    name,
    dtype,
    shapes,
    seconds,
    work,
    unit,
    rate,
    ceilingShare: rate / ceiling,
    extraBytes,
  };
}

/** Memory that one call needs beside its operands, in bytes, results included. */
async function extraMemory({ prepare = () => {}, run }: MicroCase): Promise<number> {
  await synchronize();
  let before = 0;
  scope(() => {
    prepare();
    synchronizeSync();
    resetPeakMemory();
    before = memoryStats().liveBytes;
    run();
  });
  await synchronize();
  return Math.max(0, memoryStats().peakBytes - before);
}
