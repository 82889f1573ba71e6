/**
 * Work of which nobody knows how long it takes or how much memory: it runs in a process of its own, so that the event loop stays free,
 * and so that the work can be stopped at any moment and may even run out of memory. (A thread would do for the event loop, but V8 ends
 * the whole process where an array of a thread grows too large.)
 *
 * The process is started at the first request, answers one request at a time, and ends after some idle seconds or with the thread that
 * started it.
 */
import { type ChildProcess, fork, type Serializable } from 'node:child_process';
import type { Socket } from 'node:net';
import { totalmem } from 'node:os';
import { fileURLToPath } from 'node:url';
import { BaloraError, type ErrorCode, errorOf, NativeError } from '../errors.ts';
import { Phrase } from '../phrase.ts';
import { reasonOf } from './files.ts';

const kIdleMs = 10_000;
const kLeastHeapMiB = 256;
/** Exit code of a process whose memory is not sufficient, where it is not SIGABRT. */
const kAborted = 134;
/** Interval at which the time limit is checked. A process that was stopped for an hour has missed one such tick and not an hour. */
const kTickMs = 250;

/** The first message to the process. */
interface Setup {
  readonly setup: unknown;
}

/** A message from the process. */
type Answer = { readonly value: unknown } | { readonly error: Failure };

/** An error in a form that can be sent: the facts of a BaloraError, or the message of any other. */
type Failure = Sent | { readonly message: string };

/** The facts of an error. Of its phrases their parts are left when it arrives. */
interface Sent {
  readonly code: ErrorCode;
  readonly fact: Pick<Phrase, 'parts'>;
  readonly advice: Pick<Phrase, 'parts'> | null;
  readonly path: string | undefined;
}

interface SideProcessOptions {
  /** Module that calls `answerRequests`, from the folder of the compiled library. */
  readonly module: string;
  /** Value for the module, which can be cloned. */
  readonly setup: unknown;
  /** Largest size of the JavaScript heap in MiB, but at most half of the memory that there is. */
  readonly heapMiB: number;
}

/** Options of a request. */
export interface AskOptions {
  /** Signal that ends the process, and rejects with its reason. */
  readonly signal?: AbortSignal | undefined;
  /** Milliseconds after which the process is ended. Default: no limit. */
  readonly limitMs?: number;
  /** The error for a request that the process did not survive; 'closed': `end` was called before it was answered. */
  readonly onEnd: (why: 'time' | 'memory' | 'closed') => Error;
}

/** A process that was started. */
interface Running {
  readonly child: ChildProcess;
  /** Resolves when the process has ended and its pipes are closed. */
  readonly closed: Promise<void>;
  /** Whether `end` has been called. */
  isEnded: boolean;
}

/** A process that answers requests of type Q with answers of type A. */
export class SideProcess<Q, A> {
  #running: Running | null = null;
  /** The request that was sent last. */
  #last: Promise<unknown> = Promise.resolve();
  #idle: NodeJS.Timeout | undefined;
  /** How often `end` has been called. */
  #ends = 0;

  constructor(private readonly options: SideProcessOptions) {}

  /**
   * Sends a request, and starts the process if there is none. Requests wait for those before them.
   * @throws what the module's function threw (a BaloraError with its code; an Error with its message for any other), the signal's
   *   reason, or what `onEnd` returns
   */
  ask(request: Q, options: AskOptions): Promise<A> {
    const ends = this.#ends;
    const answer = this.#last.then(() => {
      if (ends !== this.#ends) throw options.onEnd('closed');
      return this.#ask(request, options);
    });
    this.#last = answer.catch(() => {});
    return answer;
  }

  /**
   * Ends the process, and waits until it has ended and its pipes are closed. Requests that have not been answered are errors; the
   * next one starts a new process.
   */
  async end(): Promise<void> {
    clearTimeout(this.#idle);
    this.#ends++;
    const running = this.#running;
    this.#running = null;
    if (running === null) return;
    running.isEnded = true;
    await kill(running);
  }

  async #ask(request: Q, options: AskOptions): Promise<A> {
    options.signal?.throwIfAborted();
    clearTimeout(this.#idle);
    this.#running ??= this.#start();
    const running = this.#running;
    const { child } = running;
    hold(child, true);
    try {
      const answer = await exchange(running, request as Serializable, options);
      if ('error' in answer) throw madeAgain(answer.error);
      return answer.value as A;
    } finally {
      hold(child, false);
      const isGone = child.killed || child.pid === undefined;
      if (isGone && this.#running === running) this.#running = null;
      if (this.#running === running)
        this.#idle = setTimeout(() => void this.end(), kIdleMs).unref();
    }
  }

  #start(): Running {
    const { module, setup, heapMiB } = this.options;
    // From lib/io as well as from dist/io: a process runs the compiled library.
    const entry = fileURLToPath(new URL(`../../dist/${module}`, import.meta.url));
    let child: ChildProcess;
    try {
      child = fork(entry, [], {
        execArgv: [`--max-old-space-size=${Math.min(heapMiB, halfOfMemoryMiB())}`],
        env: { ...process.env, NODE_OPTIONS: '' },
        serialization: 'advanced',
        stdio: ['pipe', 'ignore', 'ignore', 'ipc'],
      });
    } catch (error) {
      throw cannotStart(error as Error);
    }
    // A failure while nobody waits shows at the next request, and one to start as the event 'error' after this turn.
    child.on('error', () => {});
    child.stdin?.on('error', () => {});
    (child.stdin as Socket | null)?.unref();
    child.once('exit', () => {
      if (this.#running?.child === child) this.#running = null;
    });
    const closed = new Promise<void>((resolve) => {
      child.once('close', () => resolve());
      if (child.pid === undefined) resolve(); // it could not be started
    });
    if (child.pid !== undefined) child.send({ setup } satisfies Setup);
    return { child, closed, isEnded: false };
  }
}

/** Sends a request and waits for the answer; kills the process if it rejects. */
async function exchange(
  running: Running,
  request: Serializable,
  { signal, limitMs = Number.POSITIVE_INFINITY, onEnd }: AskOptions,
): Promise<Answer> {
  const { child } = running;
  let stop = (): void => {};
  try {
    return await new Promise<Answer>((resolve, reject) => {
      const onAbort = () => reject((signal as AbortSignal).reason);
      const onError = (error: Error) => reject(cannotStart(error));
      const onExit = (code: number | null, by: string | null) => {
        if (running.isEnded) return reject(onEnd('closed'));
        const crashed = by !== null || code === kAborted;
        reject(crashed ? onEnd('memory') : cannotStart(new Error(`it ended with code ${code}`)));
      };
      let ticks = 0;
      const clock = setInterval(() => {
        if (++ticks * kTickMs > limitMs) reject(onEnd('time'));
      }, kTickMs);
      child.once('message', resolve).once('exit', onExit).once('error', onError);
      signal?.addEventListener('abort', onAbort, { once: true });
      stop = () => {
        clearInterval(clock);
        child.off('message', resolve).off('exit', onExit).off('error', onError);
        signal?.removeEventListener('abort', onAbort);
      };
      // Without a process there is no channel, and the event 'error' says why.
      if (child.pid === undefined) return;
      child.send(request, (error) => {
        if (error !== null) onError(error);
      });
    });
  } catch (error) {
    stop();
    await kill(running);
    throw error;
  } finally {
    stop();
  }
}

/** Kills a process, and waits until it has ended and its pipes are closed. */
async function kill({ child, closed }: Running): Promise<void> {
  if (child.pid === undefined) return;
  hold(child, true);
  child.kill('SIGKILL');
  await closed;
}

/** Lets a process keep this one alive, or not. */
function hold(child: ChildProcess, on: boolean): void {
  if (on) {
    child.ref();
    child.channel?.ref();
  } else {
    child.unref();
    child.channel?.unref();
  }
}

function cannotStart(error: Error): NativeError {
  const reason = reasonOf(error) ?? error.message;
  return new NativeError(`a process for reading data cannot be started: ${reason}`, {
    cause: error,
  });
}

function madeAgain(failure: Failure): Error {
  if ('message' in failure) return new Error(failure.message);
  const { code, fact, advice, path } = failure;
  return errorOf({
    code,
    fact: new Phrase(fact.parts),
    advice: advice && new Phrase(advice.parts),
    path,
  });
}

/** Half of the machine's memory, or of the container's. */
function halfOfMemoryMiB(): number {
  const limit = process.constrainedMemory?.() || Number.POSITIVE_INFINITY;
  return Math.max(kLeastHeapMiB, Math.floor(Math.min(totalmem(), limit) / 2 ** 21));
}

/**
 * Answers the requests of the process that started this one, with the function that `open` makes of the setup. Ends with the thread
 * that started it, also in the middle of a request.
 */
export async function answerRequests<Q>(
  open: (setup: unknown) => Promise<(request: Q) => Promise<unknown>>,
): Promise<void> {
  await endWithParent();
  // Ctrl-C goes to all processes of a terminal; the one that asked decides what ends.
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(name, () => {});
  let answer: Promise<(request: Q) => Promise<unknown>> | null = null;
  const reply = async (request: Q): Promise<void> => {
    const made = await (answer as NonNullable<typeof answer>)
      .then((respond) => respond(request))
      .then(
        (value): Answer => ({ value }),
        (error: unknown): Answer => ({ error: describe(error) }),
      );
    process.send?.(made);
  };
  process.on('message', (message: Setup | Q) => {
    if (answer !== null) return void reply(message as Q);
    answer = open((message as Setup).setup);
    answer.catch(() => {}); // reported with the first request
  });
}

function describe(error: unknown): Failure {
  if (!(error instanceof BaloraError)) return { message: (error as Error).message };
  const { code, fact, advice, path } = error;
  return { code, fact, advice, path };
}

/**
 * Ends this process when the thread that started it has ended, which closes standard input. A thread of this process waits for that,
 * since the main thread may be busy.
 */
async function endWithParent(): Promise<void> {
  const { Worker } = await import('node:worker_threads');
  const program = `
    const { Socket } = require('node:net');
    const end = () => process.kill(process.pid, 'SIGKILL');
    new Socket({ fd: 0 }).on('end', end).on('error', end).on('close', end).resume();
  `;
  new Worker(program, { eval: true, execArgv: [] }).unref();
}
