/**
 * Reading a data file by ranges of bytes: a pass over all of it in chunks, ranges that are read ahead where they are asked for in
 * order, and the place of bytes that are not UTF-8.
 */
import type { FileHandle } from 'node:fs/promises';
import { openRegular, readError } from '../io/regular_file.ts';
import { cannotOpen } from './rows.ts';

const kChunkBytes = 1 << 20;
const kNewline = 10;

/** Growing list of byte offsets (exact up to 2^53). */
export class Offsets {
  private values = new Float64Array(1024);
  length = 0;

  push(value: number): void {
    if (this.length === this.values.length) {
      const grown = new Float64Array(2 * this.values.length);
      grown.set(this.values);
      this.values = grown;
    }
    this.values[this.length++] = value;
  }

  finish(): Float64Array {
    return this.values.slice(0, this.length);
  }
}

/** Number of bytes of a UTF-8 byte-order mark at the start of a file. @param start the first bytes of the file, 3 at least */
export function markBytes(start: Uint8Array): number {
  return start[0] === 0xef && start[1] === 0xbb && start[2] === 0xbf ? 3 : 0;
}

/** Reads a file in chunks, each of which is valid until the next one is asked for. */
export async function* readChunks(path: string, file: FileHandle): AsyncGenerator<Uint8Array> {
  const buffer = new Uint8Array(kChunkBytes);
  for (let position = 0; ; ) {
    const { bytesRead } = await file
      .read(buffer, 0, buffer.length, position)
      .catch((error: unknown) => {
        throw readError(path, error);
      });
    if (bytesRead === 0) return;
    yield buffer.subarray(0, bytesRead);
    position += bytesRead;
  }
}

/**
 * Opens a data file and passes it to `index` in chunks. The file is closed where that, or `make`, throws.
 * @param make returns the result, from the open file and its size in bytes
 * @throws ArgumentError if there is no such file, and as openRegular
 */
export async function openIndexed<T>(
  path: string,
  signal: AbortSignal | undefined,
  {
    index,
    make,
  }: {
    readonly index: (chunk: Uint8Array) => void;
    readonly make: (file: FileHandle, size: number) => T;
  },
): Promise<T> {
  const file = await openRegular(path).catch((error: unknown) => {
    throw cannotOpen(path, error);
  });
  try {
    let size = 0;
    for await (const chunk of readChunks(path, file)) {
      signal?.throwIfAborted();
      index(chunk);
      size += chunk.length;
    }
    return make(file, size);
  } catch (error) {
    await file.close();
    throw error;
  }
}

/** The number, from 1, of the line at an offset: blank lines count, so the file is read up to there. */
export async function lineAt(path: string, file: FileHandle, offset: number): Promise<number> {
  let left = offset;
  let line = 1;
  for await (const chunk of readChunks(path, file)) {
    const part = chunk.subarray(0, Math.min(left, chunk.length));
    for (let at = part.indexOf(kNewline); at >= 0; at = part.indexOf(kNewline, at + 1)) line++;
    left -= part.length;
    if (left === 0) break;
  }
  return line;
}

/** Ranges of an open file. Rows that are read in order come from a window that is filled a chunk at a time. */
export class FileWindow {
  private window = { start: 0, bytes: new Uint8Array() as Uint8Array };
  /** Index of the row after the one that was read last. */
  private next = 0;

  constructor(
    private readonly path: string,
    private readonly file: FileHandle,
    private readonly size: number,
  ) {}

  /**
   * The bytes of a row.
   * @param index of the row, which shows whether rows are read in order
   * @returns null where the file has become shorter
   */
  async read(index: number, start: number, end: number): Promise<Uint8Array | null> {
    const inOrder = index === this.next;
    this.next = index + 1;
    let { window } = this; // one object that is replaced as a whole, because reads may overlap
    if (start < window.start || end > window.start + window.bytes.length) {
      const ahead = Math.min(Math.max(end - start, kChunkBytes), this.size - start);
      const bytes = await this.readBytes(start, inOrder ? ahead : end - start);
      if (bytes === null) return null;
      window = { start, bytes };
      this.window = window;
    }
    return window.bytes.subarray(start - window.start, end - window.start);
  }

  private async readBytes(start: number, length: number): Promise<Uint8Array | null> {
    const bytes = new Uint8Array(length);
    for (let filled = 0; filled < length; ) {
      const { bytesRead } = await this.file
        .read(bytes, filled, length - filled, start + filled)
        .catch((error: unknown) => {
          throw readError(this.path, error);
        });
      if (bytesRead === 0) return null;
      filled += bytesRead;
    }
    return bytes;
  }
}

/** Decodes UTF-8. @returns the text; null where bytes are no UTF-8, with the good text in front of them */
export function decodeUtf8(
  bytes: Uint8Array,
): { readonly text: string } | { readonly text: null; readonly good: string } {
  try {
    return { text: new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes) };
  } catch {
    const at = invalidUtf8Offset(bytes);
    return { text: null, good: new TextDecoder().decode(bytes.subarray(0, at)) };
  }
}

/** Number of bytes before the first that cannot belong to UTF-8: the longest prefix that decodes. */
function invalidUtf8Offset(bytes: Uint8Array): number {
  let good = 0;
  let bad = bytes.length + 1;
  while (bad - good > 1) {
    const middle = (good + bad) >> 1;
    try {
      // stream: true lets a character be cut by the end of the prefix.
      new TextDecoder('utf-8', { fatal: true }).decode(bytes.subarray(0, middle), { stream: true });
      good = middle;
    } catch {
      bad = middle;
    }
  }
  // All of it decodes but for a character that the end cuts: step back to its first byte.
  if (good === bytes.length)
    do good--;
    while (good > 0 && ((bytes[good] as number) & 0xc0) === 0x80);
  return good;
}
