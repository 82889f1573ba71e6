import type { TrainEvent } from './types.ts';

/** Something that a user should know, as an event. */
export type Warning = Extract<TrainEvent, { type: 'warning' }>;

/** Lets timers, I/O and other callbacks of the process run. */
export function yieldToEventLoop(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
