/** Yields to the event loop, so that timers, I/O and other callbacks of the process can run. */
export function yieldToEventLoop(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
