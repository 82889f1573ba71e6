/** Description of the machine for the report: hardware, and measured peak rates. */
import { readFileSync } from 'node:fs';
import { availableParallelism, cpus, release, totalmem, type } from 'node:os';
import { deviceInfo } from '../../lib/device.ts';
import { add, rand, sum } from '../../lib/ops/index.ts';
import { getNumThreads, opTimes, resetOpTimes, synchronize } from '../../lib/runtime.ts';
import { noGrad } from '../../lib/tensor.ts';
import { peakRate } from './products.ts';
import { median } from './statistics.ts';
import { timeOps } from './timing.ts';
import type { Machine } from './types.ts';

/** Flags of /proc/cpuinfo that some kernel or oneDNN checks. */
const kFeatures = [
  ...['avx2', 'fma', 'f16c', 'avx_vnni', 'avx512f', 'avx512bw', 'avx512vl', 'avx512_vnni'],
  ...['avx512_bf16', 'avx512_fp16', 'amx_tile', 'amx_bf16', 'amx_fp16', 'asimd', 'bf16', 'sve'],
];

/** The instruction sets named in the text of /proc/cpuinfo. */
export function cpuFeatures(cpuinfo: string): string[] {
  const line = /^(?:flags|Features)\s*:\s*(.*)$/m.exec(cpuinfo)?.[1] ?? '';
  const present = new Set(line.split(/\s+/));
  return kFeatures.filter((name) => present.has(name));
}

function readCpuInfo(): string {
  try {
    return readFileSync('/proc/cpuinfo', 'utf8');
  } catch {
    return '';
  }
}

/** Elements of an array that is larger than any cache, at most a thirtieth of the memory. */
function bandwidthElements(): number {
  return Math.min(128 << 20, Math.floor(totalmem() / 30 / 4));
}

/** Bytes per second that c = a + b reads and writes. */
export async function memoryBandwidth(trial: boolean): Promise<number> {
  const elements = trial ? 1 << 16 : bandwidthElements();
  using a = rand([elements], { seed: 1 });
  using b = rand([elements], { seed: 2 });
  const samples = await timeOps(() => noGrad(() => add(a, b)), { least: 3, most: 5 });
  return (3 * 4 * elements) / median(samples);
}

/** Makes an array that fits in no cache, to measure the rate at which all threads read memory. */
export function bandwidthReader({ trial }: { readonly trial: boolean }): {
  readonly bytes: number;
  /** Seconds of one pass over the array. */
  readonly readSeconds: () => Promise<number>;
  readonly dispose: () => void;
} {
  const elements = trial ? 1 << 16 : bandwidthElements();
  const array = rand([elements], { seed: 1 });
  const readSeconds = async (): Promise<number> => {
    resetOpTimes();
    noGrad(() => sum(array)).dispose();
    await synchronize();
    return opTimes().reduce((total, { seconds }) => total + seconds, 0);
  };
  return { bytes: 4 * elements, readSeconds, dispose: () => array.dispose() };
}

/** Measures the machine in this process, in a few seconds. @param trial uses tiny sizes, to try the benchmark itself */
export async function describeMachine({ trial = false } = {}): Promise<Machine> {
  const manifest = new URL('../../package.json', import.meta.url);
  const { version } = JSON.parse(readFileSync(manifest, 'utf8')) as { version: string };
  const { description } = deviceInfo(); // '' for the CPU
  return {
    cpu: cpus()[0]?.model.trim() ?? 'unknown',
    cores: availableParallelism(),
    threads: getNumThreads(),
    features: cpuFeatures(readCpuInfo()),
    memoryBytes: totalmem(),
    system: `${type()} ${release()}`,
    ...(description === '' ? {} : { device: description }),
    node: process.version,
    balora: version,
    peakF32: await peakRate('f32', { trial }),
    peakBf16: await peakRate('bf16', { trial }),
    memoryBandwidth: await memoryBandwidth(trial),
  };
}
