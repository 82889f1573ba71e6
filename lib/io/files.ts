/**
 * Atomic writing of files: under a temporary name in the same folder, flushed to the disk, then renamed. A process that is killed at
 * any moment leaves the old file or the new one, and at worst a temporary file.
 */
import { type FileHandle, mkdir, open, readdir, rename, rm } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { NativeError } from '../errors.ts';

const kTemporary = '.tmp-';
/** The process id in a temporary name that is written here, or by the engine (native/io/atomic_file.cc). */
const kWriter = /^\.tmp-(\d+)-|\.safetensors\.(\d+)-\d+\.tmp$/;

/** Writes a file atomically. @throws NativeError with the path when the disk is full or refuses. */
export async function writeFileAtomic(path: string, contents: string | Uint8Array): Promise<void> {
  const temporary = join(dirname(path), `${kTemporary}${process.pid}-${basename(path)}`);
  try {
    const file = await open(temporary, 'w');
    try {
      await file.writeFile(contents);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(temporary, path);
    await syncFolder(dirname(path));
  } catch (error) {
    await rm(temporary, { force: true });
    throw diskError(path, error);
  }
}

/**
 * Writes a folder atomically: `fill` writes its files under a temporary name, then it is renamed. A folder that already has the name
 * is replaced.
 */
export async function writeFolderAtomic(
  path: string,
  fill: (folder: string) => Promise<void>,
): Promise<void> {
  const temporary = join(dirname(path), `${kTemporary}${process.pid}-${basename(path)}`);
  try {
    await rm(temporary, { recursive: true, force: true });
    await mkdir(temporary, { recursive: true });
    await fill(temporary);
    await syncFolder(temporary);
    await rm(path, { recursive: true, force: true });
    await rename(temporary, path);
    await syncFolder(dirname(path));
  } catch (error) {
    await rm(temporary, { recursive: true, force: true });
    throw diskError(path, error);
  }
}

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
    if (isAbandoned(name)) await rm(join(folder, name), { recursive: true, force: true });
  }
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

/** A NativeError with the path for a failure of the disk; any other error is returned unchanged. */
export function diskError(path: string, error: unknown): unknown {
  const code = (error as NodeJS.ErrnoException | null)?.code;
  const reasons: Record<string, string> = {
    ENOSPC: 'no space left on the disk',
    EDQUOT: 'the disk quota is used up',
    EROFS: 'the file system is read-only',
    EACCES: 'permission denied',
    EFBIG: 'the file is larger than the system allows',
  };
  const reason = code === undefined ? undefined : reasons[code];
  return reason === undefined
    ? error
    : new NativeError(`${path}: cannot write: ${reason} (${code})`, {
        code: code === 'EROFS' || code === 'EACCES' ? 'ERR_IO' : 'ERR_DISK_FULL',
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
