/** The files of a folder that is sent elsewhere. Nothing outside of the folder is among them. */
import type { Stats } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { join, relative, sep } from 'node:path';
import { isAbandoned, isBelow, pathsBelow } from './files.ts';
import { exchanged, kOwnFlags, notOwn, openOwn, type Place } from './own_files.ts';
import { failedRead, readError, statPath } from './regular_file.ts';
import { RUN } from './run_folder.ts';

/** A file to be sent: its path in the folder, with slashes, and its bytes. */
export interface PushedFile {
  readonly path: string;
  readonly content: Blob;
}

/**
 * The files of a folder and of all folders below it, sorted. The record of a run (run/), names that begin with a dot, and temporary files
 * are left out. A link to a file in the folder counts as that file, which must not be among those left out.
 * @throws FormatError naming a link that leads out of the folder, to nothing or to a folder, and what is no regular file (a pipe, a
 *   socket, a device)
 */
export async function pushedFiles(folder: string): Promise<PushedFile[]> {
  if ((await statPath(folder)) === null) return [];
  const keeps = (path: string): boolean => !isLeftOut(path);
  const paths = await pathsBelow(folder, keeps).catch((error: NodeJS.ErrnoException) => {
    throw readError(error.path ?? folder, error);
  });
  const files: PushedFile[] = [];
  for (const path of paths) files.push({ path, content: await SentFile.open({ folder, path }) });
  return files;
}

/** Whether a path in the folder is none of those that are sent. */
function isLeftOut(path: string): boolean {
  const names = path.split('/');
  return names[0] === RUN || names.some((name) => name.startsWith('.') || isAbandoned(name));
}

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
  static async open(place: Place): Promise<SentFile> {
    const { file, root, target, found } = await openOwn(place);
    await file.close();
    if (isBelow(target, root) && isLeftOut(relative(root, target).replaceAll(sep, '/'))) {
      throw notOwn(join(place.folder, place.path), `is a link to ${target}, which is not pushed`);
    }
    return new SentFile(target, found, [0, found.size]);
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
    const file = await open(this.#path, kOwnFlags).catch(failedRead(this.#path));
    const now = await file.stat();
    const kept = (['dev', 'ino', 'size', 'mtimeMs'] as const).every(
      (key) => now[key] === this.#found[key],
    );
    if (kept) return file;
    await file.close();
    throw exchanged(this.#path);
  }
}
