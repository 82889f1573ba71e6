/**
 * The instruction sets for which matrix products have kernels (native/platform/cpu.h), and those of a processor.
 */
import { readFileSync } from 'node:fs';

interface CpuLevel {
  /** Name in deviceInfo().instructions. */
  name: string;
  /** Value of ONEDNN_MAX_CPU_ISA that restricts oneDNN and our own kernels to this level. */
  limit: string;
  /** Flags in /proc/cpuinfo that the level needs. */
  flags: string[];
}

/** All levels, lowest first. */
export const kCpuLevels: CpuLevel[] = [
  { name: 'plain', limit: 'SSE41', flags: ['sse4_1'] },
  { name: 'avx2', limit: 'AVX2', flags: ['avx2', 'fma'] },
  { name: 'avx512', limit: 'AVX512_CORE', flags: ['avx512bw', 'avx512dq', 'avx512vl'] },
  { name: 'avx512_bf16', limit: 'AVX512_CORE_BF16', flags: ['avx512_bf16'] },
  { name: 'amx', limit: 'AVX512_CORE_AMX', flags: ['amx_tile', 'amx_bf16'] },
];

/** The level that this process must use; undefined for the best. */
export const kTestCpuLevel = process.env.BALORA_TEST_CPU_LEVEL;

/** All cases on the best level; on another only the first ones, which should be the most important. */
export function casesOfLevel<T>(all: readonly T[], count = 1): readonly T[] {
  return kTestCpuLevel === undefined ? all : all.slice(0, count);
}

/** The level that a processor uses, by the text of /proc/cpuinfo, and the others that it has; none where that is unknown. */
export function cpuLevelsOf(cpuinfo = readCpuInfo()): { best: string | null; others: CpuLevel[] } {
  const present = new Set(/^flags\s*:\s*(.*)$/m.exec(cpuinfo)?.[1]?.split(' '));
  const levels = kCpuLevels.filter(({ flags }) => flags.every((flag) => present.has(flag)));
  // These processors multiply bf16 at half the rate of f32, as native/platform/cpu.cc says.
  const widens = /^vendor_id\s*:\s*GenuineIntel$/m.test(cpuinfo) && present.has('avx512_fp16');
  const best = levels.at(-1)?.name === 'avx512_bf16' && widens ? 'avx512' : levels.at(-1)?.name;
  return { best: best ?? null, others: levels.filter(({ name }) => name !== best) };
}

function readCpuInfo(): string {
  try {
    return readFileSync('/proc/cpuinfo', 'utf8');
  } catch {
    return '';
  }
}
