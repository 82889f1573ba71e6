/**
 * Callbacks run first, in order and awaited, then the event goes to whoever iterates the run. The run waits for its
 * consumer, so events never pile up.
 */
import type { TrainCallback, TrainEvent } from './types.ts';

export type Warning = Extract<TrainEvent, { type: 'warning' }>;

export async function notify(
  event: TrainEvent,
  callbacks: readonly TrainCallback[],
): Promise<TrainEvent> {
  for (const callback of callbacks) await callback(event);
  return event;
}

/** Lets timers, I/O and other callbacks of the process run. */
export function yieldToEventLoop(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
