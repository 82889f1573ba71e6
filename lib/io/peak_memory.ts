/** The peak memory of this process. */
import { readFileSync } from 'node:fs';

const kBytesPerKiB = 1024;

/**
 * The peak resident memory of this process, in bytes, with everything mapped. On Linux it is that of the program that runs: the figure of
 * getrusage(2) begins with the memory of the process that started it.
 */
export function peakRssBytes(): number {
  const [, peak] = /^VmHWM:\s*(\d+) kB$/m.exec(statusOfProcess()) ?? [];
  return kBytesPerKiB * Number(peak ?? process.resourceUsage().maxRSS);
}

/** The text of Linux about this process; empty on other systems, and where /proc is not to be seen. */
function statusOfProcess(): string {
  if (process.platform !== 'linux') return '';
  try {
    return readFileSync('/proc/self/status', 'utf8');
  } catch {
    return '';
  }
}
