/** Kernel rows, one after the other in one process. */
import type { Calibration } from './disturbance.ts';
import { disposeOperands, type MicroContext, type MicroEntry } from './micro_kit.ts';
import { kMicroTable } from './micro_table.ts';
import { type ModelShape, shapeNamed, sizesOf } from './shapes.ts';
import { spread } from './statistics.ts';
import { timeOps } from './timing.ts';
import type { BenchDType, MicroRow } from './types.ts';

export interface MicroInput {
  /** Of kMicroTable. */
  readonly names: readonly string[];
  readonly shape: string | ModelShape;
  readonly dtype: BenchDType;
  /** What the rates are held against. */
  readonly ceilings: Calibration;
  /** Rows of the micro-batch. Default 2048, in four sequences. */
  readonly rows?: number;
}

export const kMicroNames = kMicroTable.map(({ name }) => name);

export async function microRows(input: MicroInput): Promise<MicroRow[]> {
  const { names, shape, dtype, ceilings, rows = 2048 } = input;
  const context: MicroContext = {
    sizes: sizesOf(typeof shape === 'string' ? shapeNamed(shape) : shape),
    dtype,
    ...{ rows, sequences: 4, lossRows: rows / 2, rank: 16 },
  };
  const result: MicroRow[] = [];
  for (const entry of kMicroTable) {
    if (names.includes(entry.name)) result.push(await microRow(entry, context, ceilings));
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
    ops: one.ops,
    least: 5,
    most: 20,
  });
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
  };
}
