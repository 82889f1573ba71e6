/**
 * Handling of SIGINT (Ctrl-C), SIGTERM and SIGHUP. In most commands the first signal asks the command to stop at a point from which it
 * can be resumed, and the second ends the process.
 */
import { constants } from 'node:os';
import { causes } from '../train/stop.ts';

const kSignals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
export type InterruptSignal = (typeof kSignals)[number];

/**
 * The time within which a repeated signal counts as the same one: npx and npm run forward a signal that the terminal has
 * already sent to balora itself.
 */
const kRepeatMs = 250;
/** The base of exit codes for signals, as shells define it: a process ended by signal n exits with 128 + n. */
const kSignalCodes = 128;

/** The reason of a command's AbortSignal when a signal of the operating system stopped it. */
export class Interrupt extends Error {
  /** 128 + the number of the signal. */
  readonly exitCode: number;

  constructor(signal: InterruptSignal) {
    super(`stopped by ${signal}`);
    this.name = 'AbortError';
    this.exitCode = kSignalCodes + constants.signals[signal];
  }
}

/** The interrupt behind an error: the error itself, or one of its {@link causes}; null for any other error. */
export function interruptOf(error: unknown): Interrupt | null {
  return causes(error).find((cause) => cause instanceof Interrupt) ?? null;
}

/**
 * Calls `listener` at each of these signals, but once for those of one key press.
 * @returns a function that stops listening
 */
export function onSignals(listener: (name: InterruptSignal) => void): () => void {
  let last: { name: InterruptSignal; at: number } | null = null;
  const receive = (name: InterruptSignal): void => {
    const at = performance.now();
    if (last?.name === name && at - last.at < kRepeatMs) return;
    last = { name, at };
    listener(name);
  };
  const listeners = kSignals.map((name) => [name, () => receive(name)] as const);
  for (const [name, own] of listeners) process.on(name, own);
  return () => {
    for (const [name, own] of listeners) process.off(name, own);
  };
}

/**
 * Runs `work` with an AbortSignal that aborts at the first interrupt, with an {@link Interrupt} as its reason.
 * @param onFirst called at the first interrupt, to inform the user
 */
export async function abortable<T>(
  work: (signal: AbortSignal) => Promise<T>,
  onFirst: () => void = () => {},
): Promise<T> {
  const controller = new AbortController();
  const stopListening = onSignals((name) => {
    if (!controller.signal.aborted) {
      controller.abort(new Interrupt(name));
      onFirst();
    } else if (name !== 'SIGHUP') {
      // The shell and the kernel may both send SIGHUP when a terminal closes, so a second one does not end the process.
      process.exit(new Interrupt(name).exitCode);
    }
  });
  try {
    return await work(controller.signal);
  } finally {
    stopListening();
  }
}

/** {@link abortable} for a command that has nothing to keep when it is interrupted: its exit code is then that of the signal. */
export async function interruptible(
  work: (signal: AbortSignal) => Promise<number>,
  onFirst?: () => void,
): Promise<number> {
  try {
    return await abortable(work, onFirst);
  } catch (error) {
    const interrupt = interruptOf(error);
    if (interrupt === null) throw error;
    return interrupt.exitCode;
  }
}
