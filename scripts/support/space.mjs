// Room on the disk: asked for before the work, since tools that run out of it say so in many ways.
import { existsSync, statfsSync } from 'node:fs';
import { dirname } from 'node:path';
import { SetupError } from './shell.mjs';

/** Free megabytes where a folder is, or will be. */
export function freeMegabytes(folder) {
  let place = folder;
  while (!existsSync(place) && dirname(place) !== place) place = dirname(place);
  const { bavail, bsize } = statfsSync(place);
  return Math.floor((bavail * bsize) / 1e6);
}

/** Throws where less than so many megabytes are free for a work. */
export function checkSpace(folder, megabytes, work, free = freeMegabytes) {
  const there = free(folder);
  if (there >= megabytes) return;
  throw new SetupError(
    `The disk is nearly full: ${work} needs about ${megabytes} MB in ${folder}, ${there} MB are free.`,
  );
}
