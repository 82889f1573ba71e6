/**
 * The file run/metrics.jsonl: one JSON object for each step, appended when the step ends. A resumed run first removes the lines
 * of steps after its checkpoint, so that no step is listed twice.
 */
import { isUpTo, LineLog } from './line_log.ts';
import type { StepRecord } from './types.ts';

/**
 * Opens the file for appending after `step`; lines of later steps and incomplete lines are removed. `last` is the record of
 * `step` from the checkpoint; it is added if the step was saved but its line could not be written.
 */
export async function openMetrics(
  path: string,
  { step, last = null }: { step: number; last?: StepRecord | null },
): Promise<LineLog<StepRecord>> {
  const log = await LineLog.open<StepRecord>(path, isUpTo(step));
  if (last === null || log.last?.step === last.step) return log;
  try {
    await log.append(last);
    return log;
  } catch (error) {
    await log.close();
    throw error;
  }
}
