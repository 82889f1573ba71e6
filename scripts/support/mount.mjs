// Small file systems in memory, for tests with a full or read-only disk.
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmdirSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** Mounts a file system of so many KiB on a folder; whether that worked. */
export function mountSmall(folder, kiB) {
  const args = ['-t', 'tmpfs', '-o', `size=${kiB}k`, 'tmpfs', folder];
  return spawnSync('mount', args, { stdio: 'ignore' }).status === 0;
}

/** Mounts it again with other options, such as `ro`. */
export const remount = (folder, options) =>
  spawnSync('mount', ['-o', `remount,${options}`, folder], { stdio: 'ignore' }).status === 0;

/** Unmounts it, now or when its last file is closed. */
export const unmount = (folder) => spawnSync('umount', ['-l', folder], { stdio: 'ignore' });

let answer = null;

/** Whether this process may mount file systems. */
export function mayMount() {
  if (answer !== null) return answer;
  if (process.platform !== 'linux' || process.getuid?.() !== 0) return false;
  const folder = mkdtempSync(join(tmpdir(), 'balora-mount-'));
  answer = mountSmall(folder, 64);
  if (answer) unmount(folder);
  rmdirSync(folder);
  return answer;
}
