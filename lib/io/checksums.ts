/**
 * Checksums of the files in a folder that is written whole, in a file beside them as `sha256sum` writes it. `sha256sum -c SHA256SUMS`
 * checks the folder without balora.
 */
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { FormatError } from '../errors.ts';
import { writeFileAtomic } from './files.ts';
import { isMissing, readSlices, readText } from './regular_file.ts';

/** Name of the file with the checksums. */
export const CHECKSUMS = 'SHA256SUMS';

/** Bytes that are hashed at a time: about a millisecond, so that the event loop stays responsive. */
const kSliceBytes = 1 << 20;
const kLine = /^([0-9a-f]{64}) [ *](.+)$/;

/** SHA-256 of a file's bytes in hexadecimal digits. @throws FormatError, NativeError where it cannot be read */
export async function digestOfFile(path: string): Promise<string> {
  const hash = createHash('sha256');
  for await (const bytes of readSlices(path, { sliceBytes: kSliceBytes })) hash.update(bytes);
  return hash.digest('hex');
}

/** Writes the checksums of the files of these names, which are complete, into their folder. */
export async function writeChecksums(folder: string, names: readonly string[]): Promise<void> {
  const lines: string[] = [];
  for (const name of names) lines.push(`${await digestOfFile(join(folder, name))}  ${name}\n`);
  await writeFileAtomic(join(folder, CHECKSUMS), lines.join(''));
}

/**
 * Checks that the files of these names are those whose checksums were written.
 * @throws FormatError naming the file that is missing, damaged or without a checksum; NativeError where one cannot be read
 */
export async function verifyChecksums(folder: string, names: readonly string[]): Promise<void> {
  const sums = await readChecksums(folder);
  for (const name of names) {
    const path = join(folder, name);
    const expected = sums.get(name);
    if (expected === undefined) throw fault(folder, `${CHECKSUMS} has no checksum of ${name}`);
    const found = await digestOfFile(path).catch((error: unknown) => {
      throw isMissing(error) ? fault(path, 'is missing') : error;
    });
    if (found !== expected) throw fault(path, `its checksum is not the one in ${CHECKSUMS}`);
  }
}

async function readChecksums(folder: string): Promise<Map<string, string>> {
  const path = join(folder, CHECKSUMS);
  let text: string;
  try {
    text = await readText(path);
  } catch (error) {
    throw isMissing(error) ? fault(path, 'is missing') : error;
  }
  return new Map(
    text
      .split('\n')
      .filter((line) => line !== '')
      .map((line, i) => {
        const [, sum, name] = kLine.exec(line) ?? [];
        if (sum === undefined || name === undefined)
          throw fault(path, `line ${i + 1} is not a checksum and a name`);
        return [name, sum];
      }),
  );
}

function fault(path: string, what: string): FormatError {
  return new FormatError(`${path}: ${what}`, { path });
}
