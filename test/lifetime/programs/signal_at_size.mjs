// Loaded before a program (--import): sends its process a signal as soon as a file has so many bytes, and says so before. Somebody who
// looked at the file from outside might come when the program has ended. BALORA_SIGNAL_AT: JSON of path, bytes and signal.
import { statSync, writeSync } from 'node:fs';

const { path, bytes, signal } = JSON.parse(process.env.BALORA_SIGNAL_AT);
const clock = setInterval(() => {
  if ((statSync(path, { throwIfNoEntry: false })?.size ?? 0) < bytes) return;
  clearInterval(clock);
  writeSync(2, `${signal}\n`);
  process.kill(process.pid, signal);
}, 1).unref();
