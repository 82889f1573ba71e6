/**
 * The files of a folder that is sent elsewhere. Nothing outside of the folder is among them: a folder that was downloaded or unpacked may
 * hold links to a key or to another program's data, and a file may be exchanged for a link at any moment.
 */
import { constants, type Stats } from 'node:fs';
import { type FileHandle, lstat, open, readdir, realpath } from 'node:fs/promises';
import { join, relative, sep } from 'node:path';
import { FormatError } from '../errors.ts';
import { isAbandoned } from './files.ts';
import { isMissing, readError, requireRegular } from './regular_file.ts';
import { RUN } from './run_folder.ts';

/** A file to be sent: its path in the folder, with slashes, and its bytes. */
export interface PushedFile {
  readonly path: string;
  readonly content: Blob;
}

/** Advice for a link, or for a name that was one for a moment. */
const kLinkAdvice = 'put a copy in its place (cp -L), or take it out of the folder';

/**
 * The files of a folder and of all folders below it, sorted. The record of a run (run/), names that begin with a dot, and temporary files
 * are left out. A link to a file in the folder counts as that file, which must not be among those left out.
 * @throws FormatError naming a link that leads out of the folder, to nothing or to a folder, and what is no regular file (a pipe, a
 *   socket, a device)
 */
export async function pushedFiles(folder: string): Promise<PushedFile[]> {
  const root = await realpath(folder).catch((error: unknown) => {
    if (isMissing(error)) return null;
    throw readError(folder, error);
  });
  if (root === null) return [];
  const paths = await pathsBelow(folder, '');
  const files: PushedFile[] = [];
  for (const path of paths.sort()) {
    files.push({ path, content: await SentFile.open(root, { folder, path }) });
  }
  return files;
}

/** Paths of everything below a folder that is no folder itself. */
async function pathsBelow(folder: string, below: string): Promise<string[]> {
  const at = join(folder, below);
  const entries = await readdir(at, { withFileTypes: true }).catch((error: unknown) => {
    throw readError(at, error);
  });
  const paths: string[] = [];
  for (const entry of entries) {
    const path = below === '' ? entry.name : `${below}/${entry.name}`;
    if (isLeftOut(path)) continue;
    if (entry.isDirectory()) paths.push(...(await pathsBelow(folder, path)));
    else paths.push(path);
  }
  return paths;
}

/** Whether a path in the folder is none of those that are sent. */
function isLeftOut(path: string): boolean {
  const names = path.split('/');
  return names[0] === RUN || names.some((name) => name.startsWith('.') || isAbandoned(name));
}

/** The place of a file, as the user named the folder. */
interface Place {
  readonly folder: string;
  readonly path: string;
}

// A link that has taken the place of a file is not followed, and a pipe does not stop the thread. (Windows has neither flag.)
const kFlags = constants.O_RDONLY | (constants.O_NOFOLLOW ?? 0) | (constants.O_NONBLOCK ?? 0);

/** Bytes that are read at once. */
const kSliceBytes = 2 ** 20;

/**
 * A file as what @huggingface/hub sends. It is opened anew for each reading, so that a folder may have more files than a process may have
 * open, and each time it must be the same file as when it was found, of the same size.
 */
class SentFile extends Blob {
  readonly #path: string;
  readonly #found: Stats;
  readonly #start: number;
  readonly #end: number;
  override readonly size: number;

  private constructor(path: string, found: Stats, [start, end]: readonly [number, number]) {
    super([]);
    this.#path = path;
    this.#found = found;
    this.#start = start;
    this.#end = end;
    this.size = end - start;
  }

  /** @throws FormatError for what is not in the folder, or no regular file */
  static async open(root: string, { folder, path }: Place): Promise<SentFile> {
    const named = join(folder, path);
    const target = await targetOf(root, { folder, path });
    const file = await open(target, kFlags).catch((error: unknown) => {
      throw readError(named, error);
    });
    try {
      const found = await file.stat();
      requireRegular(named, found);
      // A folder above it may have been a link while it was opened: what is at its place now must be what was opened.
      const now = await lstat(target).catch(() => null);
      if ((await targetOf(root, { folder, path })) !== target || now?.ino !== found.ino) {
        throw exchanged(named);
      }
      return new SentFile(target, found, [0, found.size]);
    } finally {
      await file.close();
    }
  }

  override slice(start = 0, end = this.size): Blob {
    const at = (offset: number): number =>
      this.#start + Math.min(this.size, Math.max(0, offset < 0 ? this.size + offset : offset));
    return new SentFile(this.#path, this.#found, [at(start), Math.max(at(start), at(end))]);
  }

  override async arrayBuffer(): Promise<ArrayBuffer> {
    const bytes = new Uint8Array(this.size);
    let length = 0;
    for await (const part of this.#parts()) {
      bytes.set(part, length);
      length += part.length;
    }
    return bytes.buffer;
  }

  override async text(): Promise<string> {
    return Buffer.from(await this.arrayBuffer()).toString('utf8');
  }

  override stream(): ReturnType<Blob['stream']> {
    return ReadableStream.from(this.#parts()) as ReturnType<Blob['stream']>;
  }

  async *#parts(): AsyncGenerator<Uint8Array<ArrayBuffer>> {
    if (this.size === 0) return;
    const file = await this.#reopened();
    try {
      for (let at = this.#start; at < this.#end; ) {
        const part = new Uint8Array(Math.min(kSliceBytes, this.#end - at));
        const { bytesRead } = await file.read(part, 0, part.length, at);
        if (bytesRead === 0) throw exchanged(this.#path);
        yield part.subarray(0, bytesRead);
        at += bytesRead;
      }
    } finally {
      await file.close();
    }
  }

  /** @throws FormatError for another file than was found */
  async #reopened(): Promise<FileHandle> {
    const file = await open(this.#path, kFlags).catch((error: unknown) => {
      throw readError(this.#path, error);
    });
    const { dev, ino, size, mtimeMs } = await file.stat();
    const found = this.#found;
    if (
      dev === found.dev &&
      ino === found.ino &&
      size === found.size &&
      mtimeMs === found.mtimeMs
    ) {
      return file;
    }
    await file.close();
    throw exchanged(this.#path);
  }
}

/** The path of a file without links. @throws FormatError naming a link that leads out of the folder, to nothing or to a folder */
async function targetOf(root: string, { folder, path }: Place): Promise<string> {
  const named = join(folder, path);
  const target = await realpath(join(root, path)).catch((error: unknown) => {
    if (isMissing(error)) throw notSent(named, 'is a link that leads to nothing');
    throw readError(named, error);
  });
  if (target === join(root, path)) return target;
  if (!target.startsWith(root.endsWith(sep) ? root : root + sep)) {
    throw notSent(named, `is a link that leads out of the folder, to ${target}`);
  }
  if (isLeftOut(relative(root, target).replaceAll(sep, '/'))) {
    throw notSent(named, `is a link to ${target}, which is not pushed`);
  }
  if ((await lstat(target)).isDirectory()) {
    throw notSent(named, `is a link to a folder, ${target}`);
  }
  return target;
}

function notSent(path: string, why: string): FormatError {
  return new FormatError(`${path}: ${why}`, { path, advice: kLinkAdvice });
}

function exchanged(path: string): FormatError {
  return new FormatError(`${path}: was changed or replaced while it was read`, {
    path,
    advice: 'push again when nothing writes to the folder',
  });
}
