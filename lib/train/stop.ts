/** How a run is told to stop: by the caller's AbortSignal, which whatever works with it throws on. */

/**
 * The result of `work`, or null where it ended with the signal's own error: data, losses and callbacks of the caller may use the
 * signal too, and what they throw then is the stop that was asked for, no failure.
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

/** Node's own functions throw an AbortError of theirs with the signal's reason as its cause. */
function isAbort(error: unknown, { reason }: AbortSignal): boolean {
  return error === reason || (error instanceof Error && error.cause === reason);
}
