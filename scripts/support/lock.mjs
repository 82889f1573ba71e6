// One set-up at a time in a folder: a second one waits for the first.
import { linkSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { say } from './shell.mjs';

/** When a process began, in ticks since the system's start, so that a later process with its number is not taken for it. */
function startOf(pid) {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'utf8');
    return text.slice(text.lastIndexOf(')') + 2).split(' ')[19]; // behind the name, which may hold anything
  } catch {
    return '';
  }
}

function alive({ pid, start }) {
  try {
    process.kill(pid, 0);
  } catch (error) {
    if (error.code === 'ESRCH') return false; // EPERM: somebody else's, and alive
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

/** What a lock file says, or null where it is none of ours. */
function holderOf(text) {
  const [, pid, start] = text.match(/^(\d+) (\d*)\n$/) ?? [];
  return pid === undefined ? null : { pid: Number(pid), start };
}

/** Takes the lock at once; the holder where somebody has it, null when it is ours. */
function tryLock(path) {
  const own = `${path}.${process.pid}`;
  writeFileSync(own, `${process.pid} ${startOf(process.pid)}\n`);
  try {
    linkSync(own, path); // with its content, or not at all
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
  takeAway(path, text);
  return tryLock(path);
}

/** Takes the lock file of a process that is gone away. */
function takeAway(path, text) {
  const aside = `${path}.${process.pid}.stale`;
  try {
    renameSync(path, aside); // one of several does it
  } catch (error) {
    if (error.code === 'ENOENT') return;
    throw error;
  }
  try {
    // Somebody was quicker and has the lock by now: it goes back.
    if (read(aside) !== text) linkSync(aside, path);
  } catch (error) {
    if (error.code !== 'EEXIST') throw error;
  } finally {
    rmSync(aside, { force: true });
  }
}

/**
 * Runs work while no other process holds the lock; waits for it and says so once.
 * @param path the lock's file
 * @param work what is done meanwhile
 * @param pollMs how often a lock that is held is looked at
 */
export async function withLock(path, work, { pollMs = 500 } = {}) {
  mkdirSync(dirname(path), { recursive: true });
  let told = false;
  for (let holder = tryLock(path); holder !== null; holder = tryLock(path)) {
    if (!told) say(`Another set-up (process ${holder.pid}) works in this folder: waiting for it.`);
    told = true;
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
