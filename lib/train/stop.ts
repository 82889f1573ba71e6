/** Handling of the caller's AbortSignal, which stops a run: functions that observe it throw its reason. */

/**
 * Runs `work` and returns its result, or null if the signal aborted it. Data sources, losses and callbacks of the caller may observe
 * the signal as well; the errors that they throw for it are the requested stop and not a failure.
 */
export async function nullIfAborted<T>(
  signal: AbortSignal | undefined,
  work: () => T | Promise<T>,
): Promise<T | null> {
  try {
    return await work();
  } catch (error) {
    if (isStop(error, signal)) return null;
    throw error;
  }
}

/**
 * Whether an error comes from the signal. Node's own functions throw an AbortError whose cause is the signal's reason, and code
 * that waits for them may wrap that error once more.
 */
export function isStop(error: unknown, signal: AbortSignal | undefined): boolean {
  return signal?.aborted === true && causes(error).includes(signal.reason);
}

/** An error, its cause, the cause of that, and so on. */
export function causes(error: unknown): readonly unknown[] {
  const found = [error];
  for (let last = error; last instanceof Error && last.cause !== undefined; ) {
    last = last.cause;
    if (found.includes(last)) break; // a circle
    found.push(last);
  }
  return found;
}
