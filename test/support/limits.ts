/**
 * Milliseconds after which a test, or a program that a test runs, counts as one that never ends. It is no measure of speed: nothing
 * takes a tenth of it on an idle machine, and a machine that does other things besides may take several times as long.
 */
export const kHangLimitMs = 600_000;

/** Milliseconds of processor time that this process has taken: unlike the clock, no other process makes them more. */
export function processorMs(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
}
