/**
 * Reading of the files and folders that a user names. Everything in lib/ that opens one does it here: only regular files are read (a
 * link to one is one). A named pipe or a device would stop a thread until somebody writes to it, or never end. Every failure is an
 * error with the path, the reason and advice.
 */
import { constants, type Stats } from 'node:fs';
import { type FileHandle, open, readdir, stat } from 'node:fs/promises';
import { FormatError, fileError } from '../errors.ts';
import { diskError, isLink, kNoLink, reasonOf } from './files.ts';
import { formatBytes } from './format_bytes.ts';
import { type FileIdentity, isSameFile } from './tensor_file.ts';

/**
 * Largest size of a file other than weights and data; the largest tokenizers have half of it. JSON of that size may take 2 GiB when it is
 * parsed, and of four times the size more than V8's heap has.
 */
export const kMaxTextBytes = 64 * 2 ** 20;
/** Largest size of a configuration of a model, a tokenizer or an adapter; the largest have some hundred KiB. */
export const kMaxConfigBytes = 8 * 2 ** 20;

// O_NONBLOCK: a named pipe is opened at once, and refused. O_NOCTTY: a terminal does not become that of the process. (Not on Windows.)
const kFlags = constants.O_RDONLY | (constants.O_NONBLOCK ?? 0) | (constants.O_NOCTTY ?? 0);

/** Failures of opening that are in the path, not in the disk. */
const kPathCodes: readonly string[] = [
  ...['ENOENT', 'ENOTDIR', 'EISDIR', 'EACCES', 'EPERM', 'ELOOP', 'ENAMETOOLONG', 'ENXIO', 'ENODEV'],
];

const kPathAdvice = 'check the path and the permission to read it';

/** Options of {@link readText} and {@link readBytes}. */
export interface ReadFileOptions {
  /** Largest size in bytes; a larger file is refused before it is read. Default: {@link kMaxTextBytes}. */
  limit?: number;
  /** Whether a link to a file is read; otherwise it is refused. Default true. */
  follow?: boolean;
}

/**
 * Opens a regular file for reading.
 * @param follow whether a link to one is opened. Default true
 * @throws FormatError for a path that cannot be opened or is no regular file (the cause has the system's code), NativeError where
 *   the disk fails
 */
export async function openRegular(path: string, { follow = true } = {}): Promise<FileHandle> {
  let file: FileHandle;
  try {
    file = await open(path, follow ? kFlags : kFlags | kNoLink);
  } catch (error) {
    if (!follow && (await isLink(path))) {
      const advice = 'put a copy of the file in its place';
      throw fileError(path, 'is a link, which is not a regular file', advice);
    }
    throw readError(path, error);
  }
  try {
    requireRegular(path, await file.stat());
    return file;
  } catch (error) {
    await file.close();
    throw readError(path, error);
  }
}

/** Refuses anything but a regular file. @throws FormatError that says what the path is */
export function requireRegular(path: string, info: Stats): void {
  if (info.isFile()) return;
  const [kind, advice] = kindOf(info);
  throw fileError(path, `is ${kind}, not a regular file`, advice);
}

function kindOf(info: Stats): [kind: string, advice: string] {
  if (info.isDirectory()) return ['a folder', 'give the path of a file'];
  if (info.isFIFO()) return ['a pipe', 'write what comes through it to a file, and give that'];
  if (info.isSocket()) return ['a socket', 'write what comes through it to a file, and give that'];
  return ['a device', 'give the path of a file'];
}

/** Reads a whole file. @throws as {@link openRegular} does; FormatError for a file above the limit */
export async function readBytes(path: string, options?: ReadFileOptions): Promise<Buffer> {
  return readOpened(path, await openRegular(path, { follow: options?.follow ?? true }), options);
}

/** Reads the whole of a file that was opened, and closes it. @throws as {@link readBytes} does */
export async function readOpened(
  path: string,
  file: FileHandle,
  { limit = kMaxTextBytes }: ReadFileOptions = {},
): Promise<Buffer> {
  try {
    const { size } = await file.stat();
    if (size > limit) {
      throw fileError(
        path,
        `has ${formatBytes(size)}, and such a file may have ${formatBytes(limit)}`,
        'check that it is the right file',
      );
    }
    return await file.readFile();
  } catch (error) {
    throw readError(path, error);
  } finally {
    await file.close();
  }
}

/** Reads a whole file as UTF-8. @throws as {@link readBytes} does */
export async function readText(path: string, options: ReadFileOptions = {}): Promise<string> {
  return (await readBytes(path, options)).toString('utf8');
}

/** The part of a file to read, and how. */
interface Slices {
  /** Offset of the first byte. Default 0. */
  start?: number;
  /** Offset behind the last byte. Default: the end of the file. */
  end?: number;
  sliceBytes: number;
  /** The file that has to be read: another one under its name, or one that was changed since, is refused. Default: any file. */
  identity?: FileIdentity;
}

/** Fills `bytes` with those of a file from `start` on. @returns false where the file ends before */
export async function fill(
  path: string,
  file: FileHandle,
  { bytes, start }: { bytes: Uint8Array; start: number },
): Promise<boolean> {
  for (let filled = 0; filled < bytes.length; ) {
    const { bytesRead } = await file
      .read(bytes, filled, bytes.length - filled, start + filled)
      .catch(failedRead(path));
    if (bytesRead === 0) return false;
    filled += bytesRead;
  }
  return true;
}

/** Reads a part of a file in slices. @throws as {@link openRegular} does, FormatError for another file than `identity` */
export async function* readSlices(
  path: string,
  { start = 0, end, sliceBytes, identity }: Slices,
): AsyncGenerator<Buffer> {
  const file = await openRegular(path);
  try {
    if (identity !== undefined) await requireSame(path, file, identity);
    const last = end === undefined ? {} : { end: end - 1 };
    yield* file.createReadStream({ start, ...last, highWaterMark: sliceBytes, autoClose: false });
  } catch (error) {
    throw readError(path, error);
  } finally {
    await file.close();
  }
}

async function requireSame(path: string, file: FileHandle, identity: FileIdentity): Promise<void> {
  if (isSameFile(await file.stat({ bigint: true }), identity)) return;
  throw fileError(
    path,
    'was changed or replaced while it was read',
    'try again when nothing writes to it',
  );
}

/** The kind and size of what a path leads to; null where there is nothing. @throws as {@link openRegular} does */
export function statPath(path: string): Promise<Stats | null> {
  return ifThere(stat(path)).catch(failedRead(path));
}

/** The names in a folder. @throws as {@link openRegular} does */
export function listFolder(path: string): Promise<string[]> {
  return readdir(path).catch(failedRead(path));
}

/** Whether an error says that there is no such file: one of the system, or one that was made of it here. */
export function isMissing(error: unknown): boolean {
  const { code, cause } = (error ?? {}) as { code?: string; cause?: { code?: string } };
  return [code, cause?.code].some((found) => found === 'ENOENT' || found === 'ENOTDIR');
}

/** A handler of the errors of reading a path, which throws those of readError(). */
export const failedRead =
  (path: string) =>
  (error: unknown): never => {
    throw readError(path, error);
  };

/** The result of reading; null where there is no such file. */
export function ifThere<T>(reading: Promise<T>): Promise<T | null> {
  return reading.catch((error: unknown) => {
    if (isMissing(error)) return null;
    throw error;
  });
}

/** The error for a failure of the system to open or read a path; any other error unchanged. */
export function readError(path: string, error: unknown): unknown {
  const { code, syscall } = (error ?? {}) as NodeJS.ErrnoException;
  if (syscall === undefined || code === undefined) return error;
  if (isMissing(error)) {
    const advice = 'check the path, or fetch the file';
    return new FormatError(`${path}: no such file`, { path, advice, cause: error });
  }
  if (!kPathCodes.includes(code)) return diskError(path, error, 'read');
  return new FormatError(`${path}: cannot be opened: ${reasonOf(error)}`, {
    ...{ path, cause: error },
    advice: kPathAdvice,
  });
}
