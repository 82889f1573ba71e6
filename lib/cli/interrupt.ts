/**
 * Ctrl-C, a polite kill and a terminal that hangs up: the first asks the command to stop where it can go on later, the second
 * ends the process.
 */
import { constants } from 'node:os';

const kSignals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
type InterruptSignal = (typeof kSignals)[number];

/** npx and npm run pass a signal on that the terminal has sent to balora as well: within this time it is the same one. */
const kEchoMs = 250;
/** As shells have it: an exit code above this is that of a signal. */
const kSignalCodes = 128;

/** Why a command was stopped: the reason of its AbortSignal. */
export class Interrupt extends Error {
  /** 128 + the number of the signal. */
  readonly exitCode: number;

  constructor(signal: InterruptSignal) {
    super(`stopped by ${signal}`);
    this.name = 'AbortError';
    this.exitCode = kSignalCodes + constants.signals[signal];
  }
}

/** The interrupt that an error is, or that it was thrown for by one of Node's functions; null: it is another error. */
export function interruptOf(error: unknown): Interrupt | null {
  if (error instanceof Interrupt) return error;
  return error instanceof Error && error.cause instanceof Interrupt ? error.cause : null;
}

/**
 * Runs `work` with a signal that aborts at the first interrupt, with an {@link Interrupt} as its reason.
 * @param onFirst tells the user what happens now
 */
export async function abortable<T>(
  work: (signal: AbortSignal) => Promise<T>,
  onFirst: () => void,
): Promise<T> {
  const controller = new AbortController();
  let first: { name: InterruptSignal; at: number } | null = null;
  const interrupt = (name: InterruptSignal): void => {
    if (first === null) {
      first = { name, at: performance.now() };
      controller.abort(new Interrupt(name));
      onFirst();
      return;
    }
    // One hang-up may come twice, from the shell and from the kernel: nobody is impatient.
    const echo = name === first.name && performance.now() - first.at < kEchoMs;
    if (name !== 'SIGHUP' && !echo) process.exit(new Interrupt(name).exitCode);
  };
  const listeners = kSignals.map((name) => [name, () => interrupt(name)] as const);
  for (const [name, listener] of listeners) process.on(name, listener);
  try {
    return await work(controller.signal);
  } finally {
    for (const [name, listener] of listeners) process.off(name, listener);
  }
}
