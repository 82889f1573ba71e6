/** The instruction sets that products are dispatched by (CpuLevel in native/kernels/cpu/gemm.h), and which a processor has. */
import { readFileSync } from 'node:fs';

export interface CpuLevel {
  /** As deviceInfo().instructions has it. */
  name: string;
  /** The value of ONEDNN_MAX_CPU_ISA that holds oneDNN and our own kernels to it. */
  limit: string;
  /** What /proc/cpuinfo calls it. */
  flags: string[];
}

/** Lowest first. */
export const kCpuLevels: CpuLevel[] = [
  { name: 'plain', limit: 'SSE41', flags: ['sse4_1'] },
  { name: 'avx2', limit: 'AVX2', flags: ['avx2', 'fma'] },
  { name: 'avx512', limit: 'AVX512_CORE', flags: ['avx512bw', 'avx512dq', 'avx512vl'] },
  { name: 'avx512_bf16', limit: 'AVX512_CORE_BF16', flags: ['avx512_bf16'] },
  { name: 'amx', limit: 'AVX512_CORE_AMX', flags: ['amx_tile', 'amx_bf16'] },
];

/** The level this process is to run on; undefined: the best there is. */
export const kTestCpuLevel = process.env.BALORA_TEST_CPU_LEVEL;

/** All cases on the best level; on another the first ones, which must be those that say most. */
export function casesOfLevel<T>(all: readonly T[], count = 1): readonly T[] {
  return kTestCpuLevel === undefined ? all : all.slice(0, count);
}

/** The levels below the best of a processor; none where its text like /proc/cpuinfo's does not say. */
export function lowerCpuLevels(cpuinfo = readCpuInfo()): CpuLevel[] {
  const present = new Set(/^flags\s*:\s*(.*)$/m.exec(cpuinfo)?.[1]?.split(' '));
  const best = kCpuLevels.findLastIndex(({ flags }) => flags.every((flag) => present.has(flag)));
  return kCpuLevels.slice(0, Math.max(best, 0));
}

function readCpuInfo(): string {
  try {
    return readFileSync('/proc/cpuinfo', 'utf8');
  } catch {
    return '';
  }
}
