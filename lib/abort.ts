/**
 * How an AbortSignal reaches the engine: ops that are enqueued under a signal are skipped once it aborts. See
 * docs/decisions/how-an-abort-reaches-the-engine.md.
 */
import { BaloraError } from './errors.ts';
import { native, withSetting } from './native.ts';

/** A signal that the engine knows: its flag, what sets that, and the number of works that end when it aborts. */
interface Known {
  readonly flag: unknown;
  readonly setAborted: () => void;
  works: number;
}

const known = new WeakMap<AbortSignal, Known>();
/** The flag that ops are enqueued under; null: they run in any case. */
let current: unknown = null;

function setFlag(flag: unknown): unknown {
  const before = current;
  if (flag !== before) native.setAbort(flag);
  current = flag;
  return before;
}

function knownOf(signal: AbortSignal): Known {
  let own = known.get(signal);
  if (own === undefined) {
    const flag = native.newAbort();
    own = { flag, setAborted: () => native.abortOps(flag), works: 0 };
    known.set(signal, own);
  }
  if (signal.aborted) own.setAborted();
  return own;
}

/**
 * Lets an abort of a signal reach the ops that are enqueued under it. {@link orReason} does so for the work that it waits for.
 * @returns ends that, once the results of the ops have been read: Node 20 never frees a composite signal with a listener, and a
 *   signal of a whole program collects one of each work
 */
export function heed(signal: AbortSignal): () => void {
  const own = knownOf(signal);
  if (own.works++ === 0) signal.addEventListener('abort', own.setAborted);
  return () => {
    if (--own.works === 0) signal.removeEventListener('abort', own.setAborted);
  };
}

/**
 * Runs `body`, whose ops nobody wants once the signal aborts. Those that have not begun by then are skipped, the one that runs ends
 * early where its kernel can, and reading what they were to compute is rejected with `ERR_ABORTED` (see {@link orReason}). Ops outside
 * are as before, unless they read such a result. What `body` leaves half done, as sums that it adds to, is of no use any more.
 * @param signal one that is heeded (see {@link heed}) or has aborted; undefined: nothing changes
 */
export function withAbort<T>(signal: AbortSignal | undefined, body: () => T): T {
  if (signal === undefined) return body();
  const { flag, works } = knownOf(signal);
  if (works === 0 && !signal.aborted) throw new Error('withAbort: nothing heeds the signal');
  return withSetting(setFlag, flag, body);
}

/** Runs `body`, whose ops run in any case: others use their results, too. */
export function beyondAbort<T>(body: () => T): T {
  return withSetting(setFlag, null, body);
}

/** Whether an error says that values were not computed because their work was aborted. */
export function isAborted(error: unknown): boolean {
  return error instanceof BaloraError && error.code === 'ERR_ABORTED';
}

/**
 * Waits for work whose ops are enqueued under a signal, which is heeded meanwhile.
 * @throws the signal's reason where it came first
 */
export async function orReason<T>(
  signal: AbortSignal | undefined,
  work: () => T | Promise<T>,
): Promise<T> {
  if (signal === undefined) return await work();
  const release = heed(signal);
  try {
    return await work();
  } catch (error) {
    throw signal.aborted && isAborted(error) ? signal.reason : error;
  } finally {
    release();
  }
}

/** A signal that follows others until it is released, which leaves no listener on them. */
export interface Following {
  readonly signal: AbortSignal;
  release(): void;
}

/** A signal that aborts with the first of several, and with its reason. */
export function firstOf(...signals: readonly AbortSignal[]): Following {
  const controller = new AbortController();
  const stops = signals.map((signal) => onAbort(signal, () => controller.abort(signal.reason)));
  return {
    signal: controller.signal,
    release: () => {
      for (const stop of stops) stop();
    },
  };
}

/** A signal that aborts some time after another one, with the same reason, for work that may end by itself until then. */
export function delayed(signal: AbortSignal | undefined, ms: number): Following | undefined {
  if (signal === undefined) return undefined;
  const controller = new AbortController();
  let timer: NodeJS.Timeout | undefined;
  const stop = onAbort(signal, () => {
    timer = setTimeout(() => controller.abort(signal.reason), ms).unref();
  });
  return {
    signal: controller.signal,
    release: () => {
      stop();
      clearTimeout(timer);
    },
  };
}

/** Calls a function once a signal has aborted. @returns withdraws it */
function onAbort(signal: AbortSignal, aborted: () => void): () => void {
  if (signal.aborted) aborted();
  else signal.addEventListener('abort', aborted, { once: true });
  return () => signal.removeEventListener('abort', aborted);
}
