/**
 * Whether the machine was idle during a measurement. The processor time that was used, less that of this process and its children,
 * was used by others. The rules that turn this into warnings are pure functions.
 */
import { readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Disturbance, Machine, Measured, Row } from './types.ts';

/** Processor time since the machine was started, in seconds, summed over its cores. */
interface CpuSeconds {
  readonly busy: number;
  readonly idle: number;
  readonly stolen: number;
}

const kTicksPerSecond = 100; // USER_HZ, 100 on every Linux
/** Error of a difference: the machine counts in ticks, one per core, while a process's own time is exact. */
const kTickError = availableParallelism() / kTicksPerSecond;

/** Reads the text of /proc/stat; null where it is something else. */
export function parseCpuSeconds(stat: string): CpuSeconds | null {
  const fields = /^cpu\s+(.*)$/m.exec(stat)?.[1]?.split(/\s+/).map(Number);
  if (fields === undefined || fields.length < 8) return null;
  const [user, nice, system, idle, wait, irq, softirq, stolen] = fields as number[] &
    Record<0 | 1 | 2 | 3 | 4 | 5 | 6 | 7, number>;
  return {
    busy: (user + nice + system + irq + softirq) / kTicksPerSecond,
    idle: (idle + wait) / kTicksPerSecond,
    stolen: stolen / kTicksPerSecond,
  };
}

/** The share of the processor that others used between two readings, given the seconds of this process and its children. */
export function disturbanceBetween(
  before: CpuSeconds,
  after: CpuSeconds,
  ownSeconds: number,
): Disturbance {
  const busy = after.busy - before.busy;
  const stolen = after.stolen - before.stolen;
  const all = busy + stolen + after.idle - before.idle;
  if (!(all > 0)) return { others: 0, stolen: 0 };
  return {
    others: Math.max(0, busy - ownSeconds + stolen) / all,
    stolen: Math.max(0, stolen) / all,
  };
}

/** Measures the use of the processor since its construction. Without /proc it reports none. */
class CpuWatch {
  private readonly before = readCpuSeconds();
  private readonly own = ownSeconds();

  read(): Disturbance {
    const after = readCpuSeconds();
    if (this.before === null || after === null) return { others: 0, stolen: 0 };
    const own = ownSeconds() - this.own + kTickError;
    return disturbanceBetween(this.before, after, own);
  }
}

/** Measures one row, and adds the share of the processor that others used meanwhile. */
export async function watched<R extends Row>(measure: () => Promise<R>): Promise<R> {
  const watch = new CpuWatch();
  const row = await measure();
  return { ...row, disturbance: watch.read() };
}

function readCpuSeconds(): CpuSeconds | null {
  return parseCpuSeconds(readProc('stat'));
}

/** Processor seconds of this process and of its children that have ended (torch among them). */
function ownSeconds(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1e6 + parseChildSeconds(readProc('self/stat'));
}

/** Processor seconds of ended children, from the text of /proc/self/stat; 0 where it is something else. */
export function parseChildSeconds(stat: string): number {
  // The program's name, in parentheses, may contain spaces; cutime and cstime are the 14th and 15th field after it.
  const fields = stat
    .slice(stat.lastIndexOf(')') + 1)
    .trim()
    .split(/\s+/);
  return (Number(fields[13] ?? 0) + Number(fields[14] ?? 0)) / kTicksPerSecond;
}

function readProc(name: string): string {
  try {
    return readFileSync(`/proc/${name}`, 'utf8');
  } catch {
    return '';
  }
}

/** The peak rates that are measured before and after a run. */
export type Calibration = Pick<Machine, 'peakF32' | 'peakBf16' | 'memoryBandwidth'>;

export interface IdleFacts {
  /** Disturbance during the second before the run. */
  readonly first: Disturbance;
  readonly before: Calibration;
  readonly after: Calibration;
  readonly rows: readonly Pick<Measured, 'name' | 'disturbance'>[];
}

const kLookSeconds = 1;
const kOthersShare = 0.05;
const kCalibrationShare = 0.1;

/** The share of the processor that others use right now; unlike the load average, without processes that have just ended. */
export async function currentDisturbance(): Promise<Disturbance> {
  const watch = new CpuWatch();
  await sleep(1000 * kLookSeconds);
  return watch.read();
}

/** One line for each reason to distrust the figures; none on an idle machine. */
export function idleWarnings({ first, before, after, rows }: IdleFacts): string[] {
  const warnings: string[] = [];
  if (first.others > kOthersShare) {
    warnings.push(`before the run other processes had ${shares(first)} of the processor`);
  }
  const disturbed = rows.flatMap(({ name, disturbance }) =>
    disturbance !== undefined && disturbance.others > kOthersShare
      ? [`${name} ${shares(disturbance)}`]
      : [],
  );
  if (disturbed.length > 0) {
    warnings.push(`other processes had a share of the processor during ${disturbed.join(', ')}`);
  }
  const labels = { peakF32: 'f32 product', peakBf16: 'bf16 product', memoryBandwidth: 'memory' };
  for (const [key, label] of Object.entries(labels)) {
    const ratio = after[key as keyof Calibration] / before[key as keyof Calibration];
    if (Math.abs(Math.log(ratio)) <= Math.log(1 + kCalibrationShare)) continue;
    warnings.push(`the ${label} peak after the run was ${ratio.toFixed(2)} times that before it`);
  }
  return warnings;
}

function shares({ others, stolen }: Disturbance): string {
  const taken = stolen > kOthersShare / 2 ? ` (${percent(stolen)} stolen)` : '';
  return `${percent(others)}${taken}`;
}

function percent(share: number): string {
  return `${(100 * share).toFixed(0)}%`;
}
