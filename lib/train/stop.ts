/** The treatment of the caller's AbortSignal, by which a run is stopped: functions that observe it throw its reason. */

/**
 * The result of `work`, or null where the signal has stopped it. Data sources, losses and callbacks of the caller may observe
 * the signal as well; what they throw then is the requested stop and not a failure.
 */
export async function unlessStopped<T>(
  signal: AbortSignal | undefined,
  work: () => T | Promise<T>,
): Promise<T | null> {
  try {
    return await work();
  } catch (error) {
    if (signal?.aborted && isAbort(error, signal)) return null;
    throw error;
  }
}

/**
 * Whether an error comes from the signal. Node's own functions throw an AbortError whose cause is the signal's reason, and code
 * that waits for them may wrap that error once more.
 */
function isAbort(error: unknown, { reason }: AbortSignal): boolean {
  return causes(error).includes(reason);
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
