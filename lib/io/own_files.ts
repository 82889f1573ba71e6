/**
 * Files of a folder that somebody else may have made. What is copied out of it or sent elsewhere must be its own: a folder that was
 * downloaded or unpacked may hold links to a key or to another program's data, and a file may be exchanged for a link at any moment.
 */
import { constants, type Stats } from 'node:fs';
import { type FileHandle, lstat, open, realpath } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { FormatError, fileError } from '../errors.ts';
import { isBelow, kNoLink } from './files.ts';
import { repositoryOf } from './hub/names.ts';
import {
  failedRead,
  isMissing,
  type ReadFileOptions,
  readError,
  readOpened,
  requireRegular,
} from './regular_file.ts';

/** The place of a file: the folder as the user named it, and the path in it. */
export interface Place {
  readonly folder: string;
  readonly path: string;
}

/** A file that was opened where it belongs. */
export interface OwnFile {
  readonly file: FileHandle;
  /** Its path without links, and that of its folder. */
  readonly target: string;
  readonly root: string;
  readonly found: Stats;
}

// A link that has taken the place of a file is not followed, and a pipe does not stop the thread. (Windows has neither flag.)
export const kOwnFlags = constants.O_RDONLY | kNoLink | (constants.O_NONBLOCK ?? 0);

/**
 * Whether a path without links is below a folder or, where the folder is a snapshot in the Hub's cache, among the blobs of its
 * repository, to which a snapshot's links lead.
 * @param root path of the folder without links
 * @param repository path of the repository's folder without links; null: the folder is no snapshot
 */
export function isOwn(target: string, root: string, repository: string | null): boolean {
  const blobs = repository === null ? [] : [join(repository, 'blobs')];
  return [root, ...blobs].some((folder) => isBelow(target, folder));
}

/**
 * Opens a file of a folder, which may be a link to another file of the folder, or of the repository if the folder is a snapshot in the
 * Hub's cache.
 * @throws FormatError naming a link that leads out of the folder, to nothing or to a folder, and what is no regular file; where there
 *   is nothing, isMissing() holds for it
 */
export async function openOwn(place: Place): Promise<OwnFile> {
  const named = join(place.folder, place.path);
  const { root, target } = await targetOf(place);
  const file = await open(target, kOwnFlags).catch(failedRead(named));
  try {
    const found = await file.stat();
    if (found.isDirectory() && target !== join(root, place.path)) {
      throw notOwn(named, `is a link to a folder, ${target}`);
    }
    requireRegular(named, found);
    // A folder above it may have been a link while it was opened: what is at its place now must be what was opened.
    const now = await lstat(target).catch(() => null);
    const same = now?.ino === found.ino && now.dev === found.dev;
    if (!same || (await targetOf(place)).target !== target) throw exchanged(named);
    return { file, root, target, found };
  } catch (error) {
    await file.close();
    throw error;
  }
}

/** Reads a whole file of a folder as UTF-8. @throws as {@link readOwn} does */
export async function readOwnText(place: Place, options?: ReadFileOptions): Promise<string> {
  return (await readOwn(place, options)).toString('utf8');
}

/** Reads a whole file of a folder. @throws as {@link openOwn} does; FormatError for a file above the limit */
export async function readOwn(place: Place, options?: ReadFileOptions): Promise<Buffer> {
  const { file } = await openOwn(place);
  return readOpened(join(place.folder, place.path), file, options);
}

/** The paths of a folder and of a file in it without links. @throws FormatError for a link that leads out of the folder or to nothing */
async function targetOf({ folder, path }: Place): Promise<{ root: string; target: string }> {
  const named = join(folder, path);
  const [root, target] = await Promise.all([realpath(folder), realpath(named)]).catch(
    async (error: unknown) => {
      if (!isMissing(error) || (await lstat(named).catch(() => null)) === null) {
        throw readError(named, error);
      }
      throw notOwn(named, 'is a link that leads to nothing', error);
    },
  );
  const repository = repositoryOf(resolve(folder));
  // Whoever owns a cache may have made a link of a repository.
  if (!isOwn(target, root, repository === null ? null : await realpath(repository))) {
    throw notOwn(named, `is a link that leads out of the folder, to ${target}`);
  }
  return { root, target };
}

/** The error for a link that is not followed. */
export function notOwn(path: string, why: string, cause?: unknown): FormatError {
  return new FormatError(`${path}: ${why}`, {
    ...{ path, cause },
    advice: 'put a copy in its place (cp -L), or take it out of the folder',
  });
}

/** The error for a file that has become another one. */
export function exchanged(path: string): FormatError {
  return fileError(
    path,
    'was changed or replaced while it was read',
    'try again when nothing writes to the folder',
  );
}
