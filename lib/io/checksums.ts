/**
 * Checksums of the files in a folder that is written whole, in a file beside them as `sha256sum` writes it. `sha256sum -c SHA256SUMS`
 * checks the folder without balora.
 */
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { fileError } from '../errors.ts';
import type { Tensor } from '../tensor.ts';
import { writeFileAtomic } from './files.ts';
import { isMissing, readBytes, readSlices, readText } from './regular_file.ts';
import { SafetensorsFile } from './safetensors.ts';
import { type FileIdentity, type ReadOptions, readAll } from './tensor_file.ts';

/** Name of the file with the checksums. */
export const CHECKSUMS = 'SHA256SUMS';

/** Bytes that are hashed at a time: about a millisecond, so that the event loop stays responsive. */
const kSliceBytes = 1 << 20;
const kLine = /^([0-9a-f]{64}) [ *](.+)$/;

/** SHA-256 of a file's bytes in hexadecimal digits. @throws FormatError, NativeError where it cannot be read */
export async function digestOfFile(path: string, identity?: FileIdentity): Promise<string> {
  const hash = createHash('sha256');
  for await (const bytes of readSlices(path, { sliceBytes: kSliceBytes, identity })) {
    hash.update(bytes);
  }
  return hash.digest('hex');
}

/** Writes the checksums of the files of these names, which are complete, into their folder. */
export async function writeChecksums(folder: string, names: readonly string[]): Promise<void> {
  const lines: string[] = [];
  for (const name of names) lines.push(`${await digestOfFile(join(folder, name))}  ${name}\n`);
  await writeFileAtomic(join(folder, CHECKSUMS), lines.join(''));
}

/** A folder whose files are checked as they are read: what is used of a file are the bytes that were checked. */
export class CheckedFolder {
  private constructor(
    readonly path: string,
    private readonly sums: ReadonlyMap<string, string>,
  ) {}

  /** Reads the checksums of a folder. @throws FormatError where they are missing or damaged */
  static async open(path: string): Promise<CheckedFolder> {
    return new CheckedFolder(path, await readChecksums(path));
  }

  /**
   * Checks that the file of a name is the one whose checksum was written.
   * @param identity the file that must be under the name. Default: any
   * @throws FormatError naming the file that is missing, damaged, changed or without a checksum; NativeError where it cannot be read
   */
  async verify(name: string, identity?: FileIdentity): Promise<void> {
    const path = join(this.path, name);
    const expected = this.#sumOf(name);
    const found = await digestOfFile(path, identity).catch(orMissing(path));
    if (found !== expected) throw damaged(path);
  }

  /** Reads a whole file as UTF-8, and checks it. @throws as verify() */
  async text(name: string): Promise<string> {
    const path = join(this.path, name);
    const expected = this.#sumOf(name);
    const bytes = await readBytes(path).catch(orMissing(path));
    if (createHash('sha256').update(bytes).digest('hex') !== expected) throw damaged(path);
    return bytes.toString('utf8');
  }

  /**
   * Opens a safetensors file, and checks it. A change of its bytes from then on is an error at the next sync, as of every open file.
   * @throws as verify()
   */
  async openTensors(name: string): Promise<SafetensorsFile> {
    const path = join(this.path, name);
    let file: SafetensorsFile;
    try {
      file = SafetensorsFile.open(path);
    } catch (error) {
      await this.verify(name); // says that it is damaged, not only where
      throw error;
    }
    try {
      await this.verify(name, file.identity);
      return file;
    } catch (error) {
      file.close();
      throw error;
    }
  }

  /** Reads all tensors of a file, and checks it. @throws as openTensors(), and where the file has changed meanwhile */
  async tensors(name: string, options: ReadOptions = {}): Promise<Record<string, Tensor>> {
    const file = await this.openTensors(name);
    try {
      return await readAll(file, options);
    } finally {
      file.close();
    }
  }

  #sumOf(name: string): string {
    const sum = this.sums.get(name);
    if (sum === undefined) throw fileError(this.path, `${CHECKSUMS} has no checksum of ${name}`);
    return sum;
  }
}

const damaged = (path: string) => fileError(path, `its checksum is not the one in ${CHECKSUMS}`);

const orMissing =
  (path: string) =>
  (error: unknown): never => {
    throw isMissing(error) ? fileError(path, 'is missing') : error;
  };

async function readChecksums(folder: string): Promise<Map<string, string>> {
  const path = join(folder, CHECKSUMS);
  const text = await readText(path).catch(orMissing(path));
  return new Map(
    text
      .split('\n')
      .filter((line) => line !== '')
      .map((line, i) => {
        const [, sum, name] = kLine.exec(line) ?? [];
        if (sum === undefined || name === undefined)
          throw fileError(path, `line ${i + 1} is not a checksum and a name`);
        return [name, sum];
      }),
  );
}
