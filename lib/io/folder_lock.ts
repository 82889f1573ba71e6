/**
 * A lock file that one thread of one process holds at a time. It appears complete (written aside, then linked), and names its
 * holder, so that the lock of a process or thread that has ended can be taken over.
 *
 * Two claimants may find the same lock of a dead holder. Neither removes it, since by then it may be the other's. Each links its own
 * lock as the successor of the dead one, under a name that is derived from that lock's text, which only one of them can do, and then
 * makes sure that the chain from the lock's own name leads to it. A successor that died counts as the next lock of the chain.
 */
import { createHash, randomUUID } from 'node:crypto';
import { readFileSync, readlinkSync } from 'node:fs';
import { link, rename } from 'node:fs/promises';
import { hostname } from 'node:os';
import { ArgumentError, FormatError } from '../errors.ts';
import { diskError, isRunning, removeFile, writeAside } from './files.ts';
import { isMissing, readText } from './regular_file.ts';

/** Name of the lock of a folder that an export is written into, and the beginning of that of a file. */
export const OUTPUT_LOCK = '.balora-lock';

/** The thread that holds a lock. */
export interface LockHolder {
  readonly pid: number;
  readonly host: string;
  /** The start of the process; null or left out where the system does not say. */
  readonly started?: string | null;
  /** The thread's number in the system and its start; null or left out where the system does not say. */
  readonly thread?: { readonly id: number; readonly started: string } | null;
}

/** A lock that this thread has acquired. */
export interface FolderLock {
  /** Whether the lock is still there and still this one. */
  isHeld(): Promise<boolean>;
  /** Removes the lock, unless it is no longer this one. @throws NativeError when the disk refuses */
  release(): Promise<void>;
}

/** A lock file that exists. */
interface Found {
  readonly path: string;
  readonly text: string;
}

/** Largest size of a lock, which has some two hundred bytes. */
const kMaxBytes = 4096;

/** How often a claimant begins again because a lock changed while it was looking. */
const kAttempts = 20;

/**
 * The living holder of a lock; null if nobody holds it.
 * @throws ArgumentError for a file that is no lock
 */
export async function livingHolder(lock: string): Promise<LockHolder | null> {
  const last = (await chainFrom(lock)).at(-1);
  if (last === undefined) return null;
  const holder = holderOf(last);
  return isAlive(holder) ? holder : null;
}

/**
 * Acquires a lock.
 * @param lock path of the lock's file
 * @param inUse makes the error for a living holder
 */
export async function acquireLock(
  lock: string,
  inUse: (holder: LockHolder) => Error,
): Promise<FolderLock> {
  const text = JSON.stringify({ ...thisThread(), token: randomUUID() });
  const aside = await writeAside(lock, text);
  try {
    for (let attempt = 0; attempt < kAttempts; attempt++) {
      const chain = await chainFrom(lock);
      const last = chain.at(-1);
      const holder = last === undefined ? null : holderOf(last);
      if (holder !== null && isAlive(holder)) throw inUse(holder);
      const place = last === undefined ? lock : successorOf(lock, last.text);
      if (!(await linkNew(aside, place))) continue;
      if (place === lock) return heldLock(lock, text);
      if ((await chainFrom(lock)).at(-1)?.text === text) {
        await rename(aside, lock);
        for (const { path } of [...chain.slice(1), { path: place }]) await removeFile(path);
        return heldLock(lock, text);
      }
      await removeFile(place);
    }
  } finally {
    await removeFile(aside);
  }
  throw new ArgumentError(
    `${lock}: other processes are claiming it; wait for them, or choose another path`,
  );
}

function heldLock(lock: string, text: string): FolderLock {
  const isHeld = async (): Promise<boolean> => {
    const found = await readLock(lock).catch((error: unknown) => {
      if (error instanceof ArgumentError) return null; // something else has taken its place
      throw error;
    });
    return found?.text === text;
  };
  return {
    isHeld,
    release: async () => {
      if (await isHeld()) await removeFile(lock);
    },
  };
}

/** The lock and its successors, in order. */
async function chainFrom(lock: string): Promise<Found[]> {
  const chain: Found[] = [];
  for (let next = await readLock(lock); next !== null; ) {
    chain.push(next);
    next = await readLock(successorOf(lock, next.text));
  }
  return chain;
}

function successorOf(lock: string, text: string): string {
  return `${lock}.${createHash('sha256').update(text).digest('hex').slice(0, 16)}`;
}

async function readLock(path: string): Promise<Found | null> {
  try {
    return { path, text: await readText(path, { limit: kMaxBytes, follow: false }) };
  } catch (error) {
    if (isMissing(error)) return null;
    // Without a cause of the system's it is a link, a folder, a pipe or a large file: nothing that was written here.
    if (error instanceof FormatError && error.cause === undefined) throw noLock(path, error);
    throw error;
  }
}

/** Links a file under a second name; false if there is a file of that name. */
async function linkNew(from: string, to: string): Promise<boolean> {
  try {
    await link(from, to);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') return false;
    throw diskError(to, error);
  }
}

/** The holder of a lock. @throws ArgumentError for a file that is no lock, such as an empty one */
function holderOf({ path, text }: Found): LockHolder {
  let value: unknown = null;
  try {
    value = JSON.parse(text);
  } catch {}
  const { pid, host } = (value ?? {}) as Partial<LockHolder>;
  if (Number.isSafeInteger(pid) && typeof host === 'string') return value as LockHolder;
  throw noLock(path);
}

function noLock(path: string, refusal?: FormatError): ArgumentError {
  const why = refusal && `${refusal.fact}`.replace(`${path}: `, '');
  return new ArgumentError(
    `${path} does not name the process that holds it; remove it if there is no such process${why ? ` (it ${why})` : ''}`,
  );
}

/**
 * Whether a holder is still running. A holder on another machine counts as running, since it cannot be checked, and so does a
 * process whose start the system does not show.
 */
function isAlive({ pid, host, started = null, thread = null }: LockHolder): boolean {
  if (host !== hostname()) return true;
  if (!isRunning(pid)) return false;
  const start = startOf(`/proc/${pid}/stat`);
  if (started === null || start === null) return true;
  if (start !== started) return false;
  if (thread === null || !Number.isSafeInteger(thread.id)) return true;
  return startOf(`/proc/${pid}/task/${thread.id}/stat`) === thread.started;
}

function thisThread(): LockHolder {
  const { pid } = process;
  return { pid, host: hostname(), started: startOf(`/proc/${pid}/stat`), thread: ownThread() };
}

/** The number of this thread: a worker is a thread of its own, which may end while its process goes on. */
function ownThread(): LockHolder['thread'] {
  try {
    const place = readlinkSync('/proc/thread-self');
    const started = startOf(`/proc/${place}/stat`);
    return started === null ? null : { id: Number(place.split('/').at(-1)), started };
  } catch {
    return null;
  }
}

/**
 * The start of a process or thread in the kernel's clock ticks, which distinguishes it from a later one with the same number; null
 * where it is not known.
 */
function startOf(path: string): string | null {
  try {
    const text = readFileSync(path, 'utf8');
    return text.slice(text.lastIndexOf(')') + 2).split(' ')[19] ?? null;
  } catch {
    return null;
  }
}
