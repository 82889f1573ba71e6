// Checks of free disk space before the work, because tools report a full disk in many different ways.
import { existsSync, statfsSync } from 'node:fs';
import { dirname } from 'node:path';
import { SetupError } from './shell.mjs';

/** Number of free megabytes on the disk of a folder that exists or will be made. */
function freeMegabytes(folder) {
  let place = folder;
  while (!existsSync(place) && dirname(place) !== place) place = dirname(place);
  const { bavail, bsize } = statfsSync(place);
  return Math.floor((bavail * bsize) / 1e6);
}

/** Checks that so many megabytes are free for `work`, and throws where they are not. */
export function checkSpace(folder, megabytes, work, free = freeMegabytes) {
  const there = free(folder);
  if (there >= megabytes) return;
  throw new SetupError(
    `The disk is nearly full: ${work} needs about ${megabytes} MB in ${folder}, ${there} MB are free. Free space and run this again.`,
  );
}
