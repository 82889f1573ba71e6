/** Yielding to the event loop between the ops of a pass. */

/** Lets timers, I/O and other callbacks of the process run. */
export function yieldToEventLoop(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
