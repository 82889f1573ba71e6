/**
 * How an AbortSignal reaches the engine: ops that are enqueued under a signal are skipped once it aborts. See
 * docs/decisions/how-an-abort-reaches-the-engine.md.
 */
import { BaloraError } from './errors.ts';
import { native, withSetting } from './native.ts';

/** The engine's flags of signals. */
const flags = new WeakMap<AbortSignal, unknown>();
/** The flag that ops are enqueued under; null: they run in any case. */
let current: unknown = null;

function setFlag(flag: unknown): unknown {
  const before = current;
  if (flag !== before) native.setAbort(flag);
  current = flag;
  return before;
}

function flagOf(signal: AbortSignal): unknown {
  const known = flags.get(signal);
  if (known !== undefined) return known;
  const flag = native.newAbort();
  if (signal.aborted) native.abortOps(flag);
  else signal.addEventListener('abort', () => native.abortOps(flag), { once: true });
  flags.set(signal, flag);
  return flag;
}

/**
 * Runs `body`, whose ops nobody wants once the signal aborts. Those that have not begun by then are skipped, the one that runs ends
 * early where its kernel can, and reading what they were to compute is rejected with `ERR_ABORTED` (see {@link orReason}). Ops outside
 * are as before, unless they read such a result. What `body` leaves half done, as sums that it adds to, is of no use any more.
 * @param signal undefined: nothing changes
 */
export function withAbort<T>(signal: AbortSignal | undefined, body: () => T): T {
  return signal === undefined ? body() : withSetting(setFlag, flagOf(signal), body);
}

/** Runs `body`, whose ops run in any case: others use their results, too. */
export function beyondAbort<T>(body: () => T): T {
  return withSetting(setFlag, null, body);
}

/** Whether an error says that values were not computed because their work was aborted. */
export function isAborted(error: unknown): boolean {
  return error instanceof BaloraError && error.code === 'ERR_ABORTED';
}

/** Waits for values that were computed under a signal. @throws the signal's reason where it came first */
export async function orReason<T>(
  signal: AbortSignal | undefined,
  work: () => T | Promise<T>,
): Promise<T> {
  try {
    return await work();
  } catch (error) {
    throw signal?.aborted === true && isAborted(error) ? signal.reason : error;
  }
}

/** A signal that aborts some time after another one, with the same reason, for work that may end by itself until then. */
export function delayed(signal: AbortSignal | undefined, ms: number): AbortSignal | undefined {
  if (signal === undefined) return undefined;
  const controller = new AbortController();
  const start = (): void => {
    setTimeout(() => controller.abort(signal.reason), ms).unref();
  };
  if (signal.aborted) start();
  else signal.addEventListener('abort', start, { once: true });
  return controller.signal;
}
