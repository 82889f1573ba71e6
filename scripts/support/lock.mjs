// A lock that allows one set-up at a time in a folder: a second one waits for the first.
import { linkSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { say } from './shell.mjs';

/** Start time of a process, in ticks since the system's start, so that a later process with its number is not mistaken for it. */
function startOf(pid) {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'utf8');
    return text.slice(text.lastIndexOf(')') + 2).split(' ')[19]; // after the name, which may contain anything
  } catch {
    return '';
  }
}

function alive({ pid, start }) {
  try {
    process.kill(pid, 0);
  } catch (error) {
    if (error.code === 'ESRCH') return false; // with EPERM it is alive and belongs to another user
  }
  return start === '' || start === startOf(pid);
}

const read = (path) => {
  try {
    return readFileSync(path, 'utf8');
  } catch (error) {
    if (error.code === 'ENOENT') return null;
    throw error;
  }
};

/** The holder that a lock file names, or null where the file is not one of these locks. */
function holderOf(text) {
  const [, pid, start] = text.match(/^(\d+) (\d*)\n$/) ?? [];
  return pid === undefined ? null : { pid: Number(pid), start };
}

/** Takes the lock at once; the other holder if there is one, null when the lock is taken. */
function tryLock(path) {
  const own = `${path}.${process.pid}`;
  writeFileSync(own, `${process.pid} ${startOf(process.pid)}\n`);
  try {
    linkSync(own, path); // the lock appears with its content, or not at all
    return null;
  } catch (error) {
    if (error.code !== 'EEXIST') throw error;
  } finally {
    rmSync(own, { force: true });
  }
  const text = read(path);
  if (text === null) return tryLock(path);
  const holder = holderOf(text);
  if (holder && alive(holder)) return holder;
  removeStale(path, text);
  return tryLock(path);
}

/** Removes the lock file of a process that no longer exists. */
function removeStale(path, text) {
  const aside = `${path}.${process.pid}.stale`;
  try {
    renameSync(path, aside); // only one of several processes succeeds
  } catch (error) {
    if (error.code === 'ENOENT') return;
    throw error;
  }
  try {
    // Another process was faster and has the lock: its file is put back.
    if (read(aside) !== text) linkSync(aside, path);
  } catch (error) {
    if (error.code !== 'EEXIST') throw error;
  } finally {
    rmSync(aside, { force: true });
  }
}

/**
 * Runs work while no other process holds the lock; waits for it and prints that once.
 * @param path the lock's file
 * @param work the function to run meanwhile
 * @param pollMs milliseconds between two looks at a lock that is held
 */
export async function withLock(path, work, { pollMs = 500 } = {}) {
  mkdirSync(dirname(path), { recursive: true });
  let printed = false;
  for (let holder = tryLock(path); holder !== null; holder = tryLock(path)) {
    if (!printed) {
      say(`Another set-up (process ${holder.pid}) works in this folder: waiting for it.`);
    }
    printed = true;
    await sleep(pollMs);
  }
  const release = () => {
    if (read(path) === `${process.pid} ${startOf(process.pid)}\n`) rmSync(path, { force: true });
  };
  process.once('exit', release);
  try {
    return await work();
  } finally {
    release();
    process.off('exit', release);
  }
}
