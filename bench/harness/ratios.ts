/** Ratios of two rows of one run. */

import type { BenchDType, RatioRow, Row, StepRow, UnavailableRow } from './types.ts';
import { kRatioNeeds, type RatioName } from './workloads.ts';

interface Ratio {
  readonly meaning: string;
  readonly value: (first: StepRow, second: StepRow) => number;
}

const time = (first: StepRow, second: StepRow): number =>
  second.tokensPerSecond / first.tokensPerSecond;
const memory = (first: StepRow, second: StepRow): number => first.peakBytes / second.peakBytes;

function blockRatio<F extends string, L extends string>(
  format: F,
  label: L,
): Record<`${F}-time-${L}`, Ratio> {
  const meaning = `time of a BA-LoRA step with the base in ${format} over one with its values, ${label}`;
  return { [`${format}-time-${label}`]: { meaning, value: time } } as Record<
    `${F}-time-${L}`,
    Ratio
  >;
}

const kRatios: Readonly<Record<RatioName, Ratio>> = {
  'balora-over-lora': { meaning: 'time of a BA-LoRA step over a LoRA step, 4x512', value: time },
  'cache-teacher-over-lora': {
    meaning: 'the same with the teacher cached, from the second epoch on',
    value: time,
  },
  'memory-min-time': { meaning: 'time with the smallest memory over time without', value: time },
  'memory-min-memory': { meaning: 'peak memory with the smallest over without', value: memory },
  'long-over-short-time': { meaning: 'time of 1x2048 over 8x256', value: time },
  'long-over-short-memory': { meaning: 'peak memory of 1x2048 over 8x256', value: memory },
  ...blockRatio('nf4', '4x512'),
  ...blockRatio('nf4', '1x512'),
  ...blockRatio('gguf', '4x512'),
  ...blockRatio('gguf', '1x512'),
  'gguf-memory-4x512': {
    meaning: 'peak memory with the blocks of the GGUF file over that with its values',
    value: memory,
  },
  'int8-over-bf16': {
    meaning: 'time of a step with the teacher and dX in int8 over time without, 4x512',
    value: time,
  },
  'threads-1-2': {
    meaning: 'speed-up of the step by all threads over that of the packed product, from one thread',
    value: (all, one) => all.tokensPerSecond / one.tokensPerSecond / (all.gemmPeak / one.gemmPeak),
  },
};

/** The row of a ratio, or the reason why there is none. */
export function ratioRow(
  name: RatioName,
  dtype: BenchDType,
  rows: readonly Row[],
): RatioRow | UnavailableRow {
  const found: StepRow[] = [];
  for (const need of kRatioNeeds[name]) {
    const row = rows.find((one) => one.name === need && one.dtype === dtype);
    if (row?.kind !== 'step') {
      const reason = row?.kind === 'unavailable' ? row.reason : `${need} was not measured`;
      return { kind: 'unavailable', name, dtype, reason };
    }
    found.push(row);
  }
  const { meaning, value } = kRatios[name];
  return { kind: 'ratio', name, dtype, meaning, value: value(...(found as [StepRow, StepRow])) };
}
