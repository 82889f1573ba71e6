/**
 * Ctrl-C, a polite kill and a terminal that hangs up: the first asks the run to stop where it can go on later, the second ends
 * the process.
 */

/** Exit code of a command that an interrupt stopped (128 + SIGINT). */
export const kInterrupted = 130;

const kSignals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

/**
 * Runs `work` with a signal that aborts at the first interrupt.
 * @param onFirst tells the user what happens now
 */
export async function abortable<T>(
  work: (signal: AbortSignal) => Promise<T>,
  onFirst: () => void,
): Promise<T> {
  const controller = new AbortController();
  const listener = (name?: NodeJS.Signals) => {
    if (!controller.signal.aborted) {
      controller.abort();
      onFirst();
    } else if (name !== 'SIGHUP') {
      // One hang-up may come twice, from the shell and from the kernel: nobody is impatient.
      process.exit(kInterrupted);
    }
  };
  for (const name of kSignals) process.on(name, listener);
  try {
    return await work(controller.signal);
  } finally {
    for (const name of kSignals) process.off(name, listener);
  }
}
