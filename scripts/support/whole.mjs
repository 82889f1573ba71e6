// Folders that take long to make, and are either complete or absent, however the work ends.
import { mkdirSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';

const kSignals = ['SIGINT', 'SIGTERM', 'SIGHUP'];

/** Ends a process that was started with `detached: true`, and all processes that it has started itself. */
export function endGroup(child) {
  try {
    process.kill(-child.pid, 'SIGKILL');
  } catch (error) {
    if (error.code !== 'ESRCH') throw error;
  }
}

/**
 * Makes a folder in a temporary one beside it, FOLDER.part, which is removed when the work ends, fails or is interrupted. That of a
 * killed process is removed by the next one.
 * @param folder where the result goes
 * @param name its name within the folder that the work gets
 * @param work called with that folder and a signal that is aborted on an interruption, to end what it has started
 */
export async function makeWhole(folder, name, work) {
  const part = `${folder}.part`;
  // A compiler that is just being ended may still write a file.
  const clear = () => rmSync(part, { recursive: true, force: true, maxRetries: 5 });
  const stop = new AbortController();
  const interrupted = () => {
    stop.abort();
    clear();
    process.exit(130);
  };
  clear();
  mkdirSync(part, { recursive: true });
  for (const signal of kSignals) process.once(signal, interrupted);
  try {
    await work(part, stop.signal);
    renameSync(join(part, name), folder);
  } finally {
    for (const signal of kSignals) process.off(signal, interrupted);
    clear();
  }
}
