/**
 * Atomic writing of files: under a temporary name in the same folder, flushed to the disk, then renamed. A process that is killed at
 * any moment leaves the old file or the new one, and at worst a temporary file.
 */
import { randomBytes } from 'node:crypto';
import { constants as modes } from 'node:fs';
import { type FileHandle, lstat, mkdir, open, readdir, rename, rm, stat } from 'node:fs/promises';
import { constants } from 'node:os';
import { basename, dirname, isAbsolute, join, relative, resolve, sep } from 'node:path';
import { ArgumentError, type FormatError, fileError, NativeError } from '../errors.ts';

/**
 * The process id in a temporary name that is made here, or by the engine (native/io/atomic_file.cc). No other name counts as
 * temporary, since a user may have files and folders whose names only look like one.
 */
const kWriter =
  /^\.balora-(\d+)-[0-9a-f]{16}-|^(?:(?:adapter_model|adapters|model(?:-\d{5}-of-\d{5})?|state)\.safetensors|.+\.gguf)\.(\d+)-\d+\.tmp$/;

/** Advice where a file cannot be read. */
const kReadAdvice = 'check the permission to read it, and the disk or network drive that it is on';

/** A temporary name beside a path, which no file has. */
export function temporaryFor(path: string): string {
  const unique = `${process.pid}-${randomBytes(8).toString('hex')}`;
  return join(dirname(path), `.balora-${unique}-${basename(path)}`);
}

/**
 * Writes a file, flushed to the disk, under a new temporary name beside `path`, and returns that name.
 * @throws NativeError with the path when the disk is full or refuses
 */
export async function writeAside(path: string, contents: string | Uint8Array): Promise<string> {
  const temporary = temporaryFor(path);
  // O_EXCL: never through a link that somebody has put there.
  const file = await open(temporary, 'wx').catch(failed(path));
  try {
    await file
      .writeFile(contents)
      .then(() => file.sync())
      .finally(() => file.close());
    return temporary;
  } catch (error) {
    await discard(temporary);
    throw diskError(path, error);
  }
}

/** Writes a file atomically. @throws NativeError with the path when the disk is full or refuses. */
export async function writeFileAtomic(path: string, contents: string | Uint8Array): Promise<void> {
  const temporary = await writeAside(path, contents);
  try {
    await rename(temporary, path);
    await syncFolder(dirname(path));
  } catch (error) {
    await discard(temporary);
    throw diskError(path, error);
  }
}

/**
 * Writes a folder atomically: `fill` writes its files under a temporary name, then it is renamed. A folder that already has the name
 * is removed just before, so a process that is killed between the two leaves neither: replace only a folder that is of no use any more.
 */
export async function writeFolderAtomic(
  path: string,
  fill: (folder: string) => Promise<void>,
): Promise<void> {
  const temporary = temporaryFor(path);
  await makeFolder(dirname(path));
  await mkdir(temporary).catch(failed(path));
  try {
    await fill(temporary);
    await syncFolder(temporary);
    await rm(path, { recursive: true, force: true });
    await rename(temporary, path);
    await syncFolder(dirname(path));
  } catch (error) {
    await discard(temporary);
    throw diskError(path, error);
  }
}

/**
 * Opens a file to add to its end; it is made if there is none.
 * @throws FormatError for a link, NativeError with the path when the disk is full or refuses
 */
export async function openToAppend(path: string): Promise<FileHandle> {
  if (kNoLink === 0) await refuseLink(path);
  const { O_APPEND, O_CREAT, O_WRONLY } = modes;
  try {
    return await open(path, O_WRONLY | O_APPEND | O_CREAT | kNoLink, 0o666);
  } catch (error) {
    throw codeOf(error) === 'ELOOP' ? writtenLink(path) : diskError(path, error);
  }
}

/** The flag with which a link is not opened (Windows has none). */
export const kNoLink = modes.O_NOFOLLOW ?? 0;

/** Whether there is a link at a path. What else is wrong with the path is said when it is opened. */
export async function isLink(path: string): Promise<boolean> {
  return (await lstat(path).catch(() => null))?.isSymbolicLink() ?? false;
}

/** Refuses a link in the place of a file that is written there. @throws FormatError */
export async function refuseLink(path: string): Promise<void> {
  if (await isLink(path)) throw writtenLink(path);
}

/** Whether a path is below a folder, both without links. */
export function isBelow(path: string, folder: string): boolean {
  const way = relative(folder, path);
  return way !== '' && way.split(sep)[0] !== '..' && !isAbsolute(way);
}

/** The error for a link through which another file, whatever it is, would be written. */
export function writtenLink(path: string): FormatError {
  return fileError(
    path,
    'is a link, and files are not written through links',
    'remove it, or put the file that it leads to in its place',
  );
}

/** Removes a file, if there is one. @throws NativeError with the path when the disk refuses */
export const removeFile = (path: string): Promise<void> => remove(path, false);

/** Removes a file or a folder with all that is in it, if there is one. @throws NativeError with the path when the disk refuses */
export const removeAll = (path: string): Promise<void> => remove(path, true);

/** Removes what a write that failed has left, as far as the disk allows: the error of the write is the one to tell. */
export const discard = (temporary: string): Promise<void> => removeAll(temporary).catch(() => {});

const remove = (path: string, recursive: boolean): Promise<void> =>
  rm(path, { recursive, force: true }).catch(failed(path));

/** A handler of the disk's errors. */
const failed =
  (path: string) =>
  (error: unknown): never => {
    throw diskError(path, error);
  };

/**
 * Whether a temporary file was left behind by a process that is no longer running. Call this before the process writes anything:
 * a temporary file with its own process id is then that of an earlier process, as is common in containers.
 */
export function isAbandoned(name: string): boolean {
  const writer = kWriter.exec(name);
  if (writer === null) return false;
  const pid = Number(writer[1] ?? writer[2]);
  return pid === process.pid || !isRunning(pid);
}

/** Whether a process with this number is running. */
export function isRunning(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM'; // the process belongs to another user
  }
}

/** Removes temporary files that killed processes left behind in `folder`. */
export async function removeTemporaries(folder: string): Promise<void> {
  for (const name of await namesIn(folder)) {
    if (isAbandoned(name)) await removeAll(join(folder, name));
  }
}

/**
 * The names in an output folder; none if the folder does not exist.
 * @throws ArgumentError for a file
 */
export async function folderNames(path: string): Promise<string[]> {
  const info = await stat(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return null;
    throw diskError(path, error, 'read');
  });
  if (info !== null && !info.isDirectory())
    throw new ArgumentError(`output ${path} is a file, not a folder; choose another path`);
  return namesIn(path);
}

/** Names in a folder; none if it does not exist. */
export async function namesIn(folder: string): Promise<string[]> {
  try {
    return await readdir(folder);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw error;
  }
}

/**
 * Paths of everything below a folder that is no folder itself, relative with "/", sorted. Links count as files and are not followed.
 * @param keeps whether a path is among them, and of a folder what is in it. Default: all
 */
export async function pathsBelow(
  folder: string,
  keeps: (path: string) => boolean = () => true,
): Promise<string[]> {
  const paths: string[] = [];
  const folders = [''];
  for (let above = folders.pop(); above !== undefined; above = folders.pop()) {
    for (const entry of await readdir(join(folder, above), { withFileTypes: true })) {
      const path = `${above}${entry.name}`;
      if (keeps(path)) entry.isDirectory() ? folders.push(`${path}/`) : paths.push(path);
    }
  }
  return paths.sort();
}

/**
 * Creates a folder and those above it that do not exist. (Node's own recursive mkdir never ends where the system refuses a folder
 * as if the one above it were missing, as Linux does in /proc.)
 * @throws NativeError naming the folder that cannot be created, ArgumentError for an empty path
 */
export async function makeFolder(path: string): Promise<void> {
  if (path === '') throw new ArgumentError('a folder to write into must be a path, got ""');
  const missing: string[] = [];
  for (let folder = resolve(path); !(await isFolder(folder)); folder = dirname(folder)) {
    missing.unshift(folder);
  }
  for (const folder of missing) {
    try {
      await mkdir(folder);
    } catch (error) {
      // Another process may have been faster.
      const { code } = error as NodeJS.ErrnoException;
      if (code !== 'EEXIST' || !(await isFolder(folder))) throw diskError(folder, error);
    }
  }
}

async function isFolder(path: string): Promise<boolean> {
  try {
    return (await stat(path)).isDirectory();
  } catch (error) {
    const { code = '' } = error as NodeJS.ErrnoException;
    if (['ENOENT', 'ENOTDIR'].includes(code) && path !== dirname(path)) return false;
    throw diskError(path, error, 'read');
  }
}

const kFull: readonly string[] = ['ENOSPC', 'EDQUOT', 'EFBIG'];
const kReasons: Readonly<Record<string, string>> = {
  ENOSPC: 'no space left on the disk',
  EDQUOT: 'the disk quota is used up',
  EROFS: 'the file system is read-only',
  EACCES: 'permission denied',
  EPERM: 'permission denied',
  EFBIG: 'the file is larger than the system allows',
  EIO: 'the disk reports an error',
  EISDIR: 'it is a folder',
  ELOOP: 'it is a link that leads in circles',
  ENAMETOOLONG: 'the name is too long',
  EMFILE: 'this process has too many files open',
};

/** Reasons for which a path cannot be written, where the system's message may name a temporary one beside it. */
const kNoPlace: Readonly<Record<string, string>> = {
  ENOENT: 'no such file or folder (ENOENT)',
  ENOTDIR: 'a part of the path is no folder (ENOTDIR)',
};

/** The system's name for an error; Node knows a quota that is used up by its number alone. */
function codeOf(error: unknown): string | undefined {
  const { code, errno } = (error ?? {}) as Partial<NodeJS.ErrnoException>;
  return errno === -constants.errno.EDQUOT ? 'EDQUOT' : code;
}

/** Why the system refused, for people; undefined for an error that is not the system's. */
export function reasonOf(error: unknown): string | undefined {
  const { syscall, message } = (error ?? {}) as Partial<NodeJS.ErrnoException>;
  const code = codeOf(error);
  if (code === undefined) return undefined;
  if (Object.hasOwn(kReasons, code)) return `${kReasons[code]} (${code})`;
  return syscall === undefined ? undefined : message;
}

const kRefusals: readonly unknown[] = ['EACCES', 'EPERM', 'EROFS'];

/** Why the system does not let this user write, for people; null for an error of another kind. */
export function refusalOf(error: unknown): string | null {
  const cause = (error as Error).cause ?? error;
  return kRefusals.includes(codeOf(cause)) ? (reasonOf(cause) ?? null) : null;
}

/** Why the system does not let this user write a file; null where it does, where there is no file, and for an error of another kind. */
export async function writeRefusal(path: string): Promise<string | null> {
  try {
    // Opened, since access() goes by the process's real user.
    await (await open(path, modes.O_RDWR | modes.O_NONBLOCK)).close();
    return null;
  } catch (error) {
    return refusalOf(error);
  }
}

/** The named error for a failure of the disk; any other error unchanged. */
export function diskError(
  path: string,
  error: unknown,
  doing: 'write' | 'read' = 'write',
): unknown {
  const reason = (doing === 'write' && kNoPlace[codeOf(error) ?? '']) || reasonOf(error);
  if (reason === undefined) return error;
  return new NativeError(`${path}: cannot ${doing}: ${reason}`, {
    path,
    cause: error,
    code: kFull.includes(codeOf(error) ?? '') ? 'ERR_DISK_FULL' : 'ERR_IO',
    ...(doing === 'read' && { advice: kReadAdvice }),
  });
}

/** Flushes a folder, without which a rename in it is not durable; systems that cannot open folders skip it. */
export async function syncFolder(folder: string): Promise<void> {
  let handle: FileHandle | undefined;
  try {
    handle = await open(folder, 'r');
    await handle.sync();
  } catch (error) {
    if (
      !['EISDIR', 'EINVAL', 'EPERM', 'ENOTSUP'].includes(
        (error as NodeJS.ErrnoException).code ?? '',
      )
    )
      throw error;
  } finally {
    await handle?.close();
  }
}
