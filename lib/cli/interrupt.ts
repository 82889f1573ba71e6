/** Ctrl-C and a polite kill: the first asks the run to stop where it can go on later, the second ends the process. */

/** Exit code of a command that an interrupt stopped (128 + SIGINT). */
export const kInterrupted = 130;

const kSignals = ['SIGINT', 'SIGTERM'] as const;

/**
 * Runs `work` with a signal that aborts at the first interrupt.
 * @param onFirst tells the user what happens now
 */
export async function abortable<T>(
  work: (signal: AbortSignal) => Promise<T>,
  onFirst: () => void,
): Promise<T> {
  const controller = new AbortController();
  const listener = () => {
    if (controller.signal.aborted) {
      process.exit(kInterrupted);
    } else {
      controller.abort();
      onFirst();
    }
  };
  for (const name of kSignals) process.on(name, listener);
  try {
    return await work(controller.signal);
  } finally {
    for (const name of kSignals) process.off(name, listener);
  }
}
