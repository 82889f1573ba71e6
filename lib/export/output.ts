/** Outputs of an export, each of which appears whole or not at all. */
import { mkdir, readdir, rename, rmdir, stat } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import { ArgumentError } from '../errors.ts';
import {
  discard,
  diskError,
  folderNames,
  isAbandoned,
  makeFolder,
  namesIn,
  removeFile,
  removeTemporaries,
  syncFolder,
  temporaryFor,
} from '../io/files.ts';

/**
 * Checks that an output does not exist: a file must be absent, a folder absent or empty. Removes temporary files that a killed
 * process left behind there.
 * @throws ArgumentError for an output that exists, NativeError for one that cannot be read
 */
export async function checkNewOutput(path: string, kind: 'file' | 'folder'): Promise<void> {
  if (path === '') throw new ArgumentError(`output must be the path of a ${kind}, got ""`);
  await (kind === 'folder' ? requireEmptyFolder(path) : requireNoFile(path));
}

async function requireEmptyFolder(folder: string): Promise<void> {
  const names = await folderNames(folder);
  if (names.every(isAbandoned)) return removeTemporaries(folder);
  throw new ArgumentError(
    `output folder ${folder} is not empty (${names.slice(0, 4).join(', ')}); choose another one`,
  );
}

async function requireNoFile(path: string): Promise<void> {
  const info = await stat(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return null;
    throw diskError(path, error, 'read');
  });
  if (info?.isDirectory()) {
    throw new ArgumentError(`output ${path} is a folder; give the path of a file in it`);
  }
  if (info !== null) throw new ArgumentError(`output ${path} exists; choose another path`);
  const folder = dirname(resolve(path));
  for (const name of await namesIn(folder)) {
    if (name.startsWith(`${basename(path)}.`) && isAbandoned(name))
      await removeFile(join(folder, name));
  }
}

/** Makes the folder of a file that is to be written. */
export function makeFolderOf(path: string): Promise<void> {
  return makeFolder(dirname(resolve(path)));
}

/**
 * Fills a folder that is absent or empty: `fill` writes into a temporary folder inside it, whose files are then moved to their places,
 * the ones in `last` after all others. After a failure the folder is as it was.
 * @returns the result of `fill`
 */
export async function fillFolder<T>(
  path: string,
  fill: (folder: string) => Promise<T>,
  last: readonly string[],
): Promise<T> {
  const existed = await stat(path).then(
    () => true,
    () => false,
  );
  await makeFolder(path);
  const temporary = temporaryFor(join(path, 'export'));
  try {
    await mkdir(temporary);
    const result = await fill(temporary);
    await syncFolder(temporary);
    const names = await readdir(temporary);
    const ordered = [...names.filter((name) => !last.includes(name)), ...last];
    for (const name of ordered) {
      if (names.includes(name)) await rename(join(temporary, name), join(path, name));
    }
    await rmdir(temporary);
    await syncFolder(path);
    return result;
  } catch (error) {
    await discard(temporary);
    if (!existed) await rmdir(path).catch(() => {}); // it may hold files that were moved already
    throw diskError(path, error);
  }
}
