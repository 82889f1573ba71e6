/**
 * Outputs of an export, each of which appears whole or not at all, and which one process at a time writes.
 *
 *     <folder>/.balora-export.json      the files that an export wrote there, which `overwrite` replaces
 *     <folder>/.balora-lock             the process that is writing; of a file, `.balora-lock-<name>` beside it
 */
import type { Stats } from 'node:fs';
import { lstat, mkdir, realpath, rename, rmdir } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import { ArgumentError, fileError } from '../errors.ts';
import {
  discard,
  diskError,
  folderNames,
  isAbandoned,
  isBelow,
  makeFolder,
  namesIn,
  pathsBelow,
  removeAll,
  removeFile,
  removeTemporaries,
  syncFolder,
  temporaryFor,
  writeFileAtomic,
} from '../io/files.ts';
import { acquireLock, type LockHolder, livingHolder, OUTPUT_LOCK } from '../io/folder_lock.ts';
import { ifThere, openRegular, readText } from '../io/regular_file.ts';
import { objectIn, RUN } from '../io/run_folder.ts';

/** Options of an output that is to be written. */
export interface OutputOptions {
  /**
   * Whether to replace an earlier export there: the files that it wrote into a folder, or a file of the form in which single files are
   * written (GGUF), and nothing else. Default false.
   */
  readonly overwrite?: boolean | undefined;
  /** Models, adapters and texts that are read meanwhile: an output that replaces another must not be, hold or lie in one of them. */
  readonly sources?: readonly (string | null | undefined)[];
  /** Names of files that are written into a folder beside weights and configurations; files of others with them are refused. */
  readonly names?: readonly string[];
}

/** The files that an export wrote into a folder. */
interface Manifest {
  /** Whether it came to its end: otherwise a part of the files may be there. */
  readonly complete: boolean;
  /** Paths in the folder, with "/". */
  readonly files: readonly string[];
  /** The same files where the export is incomplete: others that have their names by now are somebody else's. */
  readonly written?: readonly Written[];
}

/** A file that an export wrote, which keeps all of this when it is renamed. */
interface Written {
  readonly path: string;
  readonly size: number;
  readonly mtimeMs: number;
  readonly ino: number;
}

const kManifest = '.balora-export.json';

/** Names that say what a folder is, or that readers of a model or an adapter look for. */
const kTelling = /\.safetensors(\.index\.json)?$|^(adapter_)?config\.json$|^Modelfile$/;

/** Beginning of each output that is a single file. */
const kFileStart = 'GGUF';

/** The lock, its successors, and what processes write that are about to claim it. */
const kOfLock = new RegExp(
  `^(\\.balora-\\d+-[0-9a-f]{16}-)?${OUTPUT_LOCK.replace('.', '\\.')}(\\.|$)`,
);

const isOfOutput = (name: string): boolean => name === kManifest || kOfLock.test(name);

/**
 * Checks that an output can be written: a file must be absent, a folder absent or empty, unless it is to be overwritten. Removes
 * temporary files that a killed process left behind there.
 * @throws ArgumentError for an output that exists or that another process is writing, NativeError for one that cannot be read
 */
export async function checkNewOutput(
  path: string,
  kind: 'file' | 'folder',
  { overwrite = false, sources = [], names = [] }: OutputOptions = {},
): Promise<void> {
  if (path === '') throw new ArgumentError(`output must be the path of a ${kind}, got ""`);
  if (overwrite) await requireOther(path, kind, sources);
  const lock = lockOf(path, kind);
  // A path that goes through a file is refused below.
  const holder = await livingHolder(lock).catch((error: unknown) => {
    if (error instanceof ArgumentError) throw error;
    return null;
  });
  if (holder !== null) throw inUse(path, lock, holder);
  if (kind === 'file') return requireNoFile(path, overwrite);
  await requireFreeFolder(path, overwrite, names);
  await removeTemporaries(path);
}

function lockOf(path: string, kind: 'file' | 'folder'): string {
  if (kind === 'folder') return join(path, OUTPUT_LOCK);
  return join(dirname(resolve(path)), `${OUTPUT_LOCK}-${basename(path)}`);
}

function inUse(path: string, lock: string, { pid, host }: LockHolder): ArgumentError {
  return new ArgumentError(
    `output ${path} is being written by process ${pid} on ${host}; wait for it, choose another path, or remove ${lock} if there is no ` +
      'such process',
  );
}

/** @throws ArgumentError for an output that is, holds or lies in what it is made of, under any of their names */
async function requireOther(
  path: string,
  kind: 'file' | 'folder',
  sources: readonly (string | null | undefined)[],
): Promise<void> {
  const output = await realPlace(path);
  for (const source of sources) {
    if (source === null || source === undefined) continue;
    const from = await realPlace(source);
    const read = [from, ...(await linkedFrom(from))];
    if (read.some((one) => one === output || (kind === 'folder' && isBelow(one, output)))) {
      throw new ArgumentError(
        `output ${path} would replace ${source}, of which it is made; choose another path`,
      );
    }
    if (isBelow(output, from)) {
      throw new ArgumentError(
        `output ${path} lies in ${source}, of which it is made; choose a path outside of it to overwrite`,
      );
    }
  }
}

/** A path without links, also where its last parts do not exist yet. */
async function realPlace(path: string): Promise<string> {
  const whole = resolve(path);
  const found = await realpath(whole).catch(() => null);
  if (found !== null || dirname(whole) === whole) return found ?? whole;
  return join(await realPlace(dirname(whole)), basename(whole));
}

/** Places that the links in a folder lead to, such as those of a snapshot in the Hub's cache. */
async function linkedFrom(folder: string): Promise<string[]> {
  const names = await namesIn(folder).catch(() => []);
  const places = await Promise.all(names.map((name) => realPlace(join(folder, name))));
  return places.filter((place) => !isBelow(place, folder));
}

/**
 * Checks that a folder may be filled.
 * @param written names of files that will be written
 * @returns what an earlier export wrote there and is to be replaced; null: nothing
 */
async function requireFreeFolder(
  folder: string,
  overwrite: boolean,
  written: readonly string[] = [],
): Promise<Manifest | null> {
  const all = await folderNames(folder);
  const names = all.filter((name) => !isOfOutput(name) && !isAbandoned(name));
  const earlier = all.includes(kManifest) ? await readManifest(folder) : null;
  const own = new Set(earlier?.files.map((file) => file.split('/')[0]));
  const others = names.filter((name) => !own.has(name));
  const telling = others.find((name) => kTelling.test(name) || written.includes(name));
  const foreign = earlier === null ? null : await foreignIn(folder, earlier);
  if (overwrite && others.includes(RUN)) {
    throw new ArgumentError(
      `output folder ${folder} is that of a run, which no export overwrites; choose another one`,
    );
  }
  if (overwrite && telling !== undefined) throw notOurs(folder, telling);
  if (foreign !== null) throw notOurs(folder, foreign);
  // An export that was killed leaves files that are of no use, and that the next one removes.
  const taken = earlier?.complete === false ? others : names;
  if (overwrite || taken.length === 0) return earlier;
  const listed = `${taken.slice(0, 4).join(', ')}${taken.length > 4 ? ', ...' : ''}`;
  throw new ArgumentError(
    `output folder ${folder} is not empty (${listed}); choose another one` +
      (earlier === null ? '' : ', or pass overwrite: true to replace what an export wrote there'),
  );
}

function notOurs(folder: string, file: string): ArgumentError {
  return new ArgumentError(
    `output folder ${folder} holds ${file}, which no export of balora wrote there; remove it, or choose another folder`,
  );
}

/** A file that an incomplete export lists and did not write, such as one of a list that was copied with its folder; null: none is. */
async function foreignIn(folder: string, { complete, files, written = [] }: Manifest) {
  for (const file of complete ? [] : files) {
    const found = await infoOf(join(folder, file));
    if (found === null) continue;
    const { size, mtimeMs, ino } = found;
    const isOurs = written.some(
      (one) =>
        one?.path === file && one.size === size && one.mtimeMs === mtimeMs && one.ino === ino,
    );
    if (!isOurs) return file;
  }
  return null;
}

async function readManifest(folder: string): Promise<Manifest | null> {
  const path = join(folder, kManifest);
  const text = await ifThere(readText(path));
  if (text === null) return null;
  const { complete, files, written = [] } = objectIn<Partial<Manifest>>(text) ?? {};
  const isList =
    Array.isArray(files) &&
    files.every((file) => typeof file === 'string') &&
    Array.isArray(written);
  const root = await realpath(folder);
  const isInside = async (file: string): Promise<boolean> => {
    if (!file.split('/').every((part) => part !== '' && part !== '.' && part !== '..'))
      return false;
    const parent = await realpath(dirname(join(folder, file))).catch(() => root);
    return parent === root || isBelow(parent, root);
  };
  if (typeof complete === 'boolean' && isList) {
    const inside = await Promise.all(files.map(isInside));
    if (inside.every(Boolean)) return { complete, files, written };
  }
  throw fileError(
    path,
    'is no list of files of an export',
    'choose another folder, or empty this one',
  );
}

function writeManifest(folder: string, manifest: Manifest): Promise<void> {
  return writeFileAtomic(join(folder, kManifest), `${JSON.stringify(manifest, null, 2)}\n`);
}

async function requireNoFile(path: string, overwrite: boolean): Promise<void> {
  const info = await infoOf(path);
  if (info?.isDirectory()) {
    throw new ArgumentError(`output ${path} is a folder; give the path of a file in it`);
  }
  if (info !== null && !overwrite) {
    throw new ArgumentError(
      `output ${path} exists; choose another path, or pass overwrite: true to replace it`,
    );
  }
  if (info !== null && !info.isFile()) {
    throw new ArgumentError(`output ${path} is no regular file; choose another path`);
  }
  if (info !== null && !(await beginsAsOutput(path))) {
    throw new ArgumentError(
      `output ${path} is no ${kFileStart} file, so no export of balora wrote it; remove it, or choose another path`,
    );
  }
  const folder = dirname(resolve(path));
  for (const name of await namesIn(folder)) {
    if (name.startsWith(`${basename(path)}.`) && isAbandoned(name))
      await removeFile(join(folder, name));
  }
}

async function beginsAsOutput(path: string): Promise<boolean> {
  const file = await openRegular(path);
  try {
    const { buffer } = await file.read(Buffer.alloc(kFileStart.length), { position: 0 });
    return buffer.toString('latin1') === kFileStart;
  } finally {
    await file.close();
  }
}

/** The file, folder or link at a path; null: there is nothing. */
async function infoOf(path: string): Promise<Stats | null> {
  return lstat(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return null;
    throw diskError(path, error, 'read');
  });
}

/**
 * Writes a file, while no other process of balora writes it.
 * @param write writes it atomically
 * @throws ArgumentError if there is one that is not to be overwritten, or if another process is writing it
 */
export async function writeNewFile<T>(
  path: string,
  write: () => Promise<T>,
  { overwrite = false }: Pick<OutputOptions, 'overwrite'> = {},
): Promise<T> {
  await makeFolder(dirname(resolve(path)));
  return claimed(path, 'file', async () => {
    await requireNoFile(path, overwrite);
    return write();
  });
}

/**
 * Fills a folder, while no other process of balora writes into it: `fill` writes into a temporary folder inside it, whose files are
 * then moved to their places, the ones in `last` after all others. A failure before that leaves the folder as it was; what a process
 * that is killed meanwhile leaves is removed by the next export there.
 * @returns the result of `fill`
 * @throws ArgumentError for a folder that is not empty, unless an earlier export in it is to be overwritten; or one in use
 */
export async function fillFolder<T>(
  path: string,
  fill: (folder: string) => Promise<T>,
  last: readonly string[],
  { overwrite = false }: Pick<OutputOptions, 'overwrite'> = {},
): Promise<T> {
  const existed = await infoOf(path).then((info) => info !== null);
  try {
    await makeFolder(path);
    return await claimed(path, 'folder', () => fillClaimed(path, fill, { last, overwrite }));
  } catch (error) {
    if (!existed) await rmdir(path).catch(() => {}); // it may be another process's by now
    throw diskError(path, error);
  }
}

/** Runs `work` while no other process of balora writes an output. @throws ArgumentError if one does */
async function claimed<T>(
  path: string,
  kind: 'file' | 'folder',
  work: () => Promise<T>,
): Promise<T> {
  const place = lockOf(path, kind);
  const lock = await acquireLock(place, (holder) => inUse(path, place, holder));
  try {
    return await work();
  } finally {
    await lock.release();
  }
}

async function fillClaimed<T>(
  path: string,
  fill: (folder: string) => Promise<T>,
  { last, overwrite }: { last: readonly string[]; overwrite: boolean },
): Promise<T> {
  const found = await requireFreeFolder(path, overwrite);
  await removeTemporaries(path);
  if (found?.complete === false) {
    for (const file of found.files) await removeFile(join(path, file));
    await removeEmptyFolders(path, found.files);
    await removeFile(join(path, kManifest));
  }
  const earlier = found?.complete === false ? null : found;
  const temporary = temporaryFor(join(path, 'export'));
  try {
    await mkdir(temporary);
    const result = await fill(temporary);
    await moveInto(path, temporary, { last, earlier });
    await removeAll(temporary);
    return result;
  } catch (error) {
    await discard(temporary);
    throw error;
  }
}

async function removeEmptyFolders(path: string, files: readonly string[]): Promise<void> {
  for (const folder of foldersOf(files).reverse()) await rmdir(join(path, folder)).catch(() => {});
}

/** The folders of files, those above before those in them. */
function foldersOf(files: readonly string[]): string[] {
  const folders = new Set<string>();
  for (const file of files) {
    const parts = file.split('/');
    for (let i = 1; i < parts.length; i++) folders.add(parts.slice(0, i).join('/'));
  }
  return [...folders].sort();
}

async function writtenIn(folder: string, files: readonly string[]): Promise<Written[]> {
  const written: Written[] = [];
  for (const path of files) {
    const info = await infoOf(join(folder, path));
    if (info === null) continue;
    const { size, mtimeMs, ino } = info;
    written.push({ path, size, mtimeMs, ino });
  }
  return written;
}

/** Moves the files of a complete temporary folder to their places, in those of an earlier output. */
async function moveInto(
  path: string,
  temporary: string,
  { last, earlier }: { last: readonly string[]; earlier: Manifest | null },
): Promise<void> {
  const files = await pathsBelow(temporary);
  const old = earlier?.files ?? [];
  for (const file of files.filter((name) => !old.includes(name))) {
    if ((await infoOf(join(path, file))) !== null) throw notOurs(path, file);
  }
  const folders = foldersOf(files);
  for (const folder of ['', ...folders]) await syncFolder(join(temporary, folder));
  const written = [...(await writtenIn(path, old)), ...(await writtenIn(temporary, files))];
  await writeManifest(path, { complete: false, files: [...new Set([...old, ...files])], written });
  // First those without which nobody takes old and new files for one output.
  for (const file of old.filter((name) => kTelling.test(basename(name)) || last.includes(name))) {
    await removeFile(join(path, file));
  }
  if (old.length > 0) await syncFolder(path);
  for (const folder of folders) await makeFolder(join(path, folder));
  const move = async (file: string): Promise<void> => {
    if (files.includes(file)) await rename(join(temporary, file), join(path, file));
  };
  for (const file of files.filter((name) => !last.includes(name))) await move(file);
  const stale = old.filter((file) => !files.includes(file));
  for (const file of stale) await removeFile(join(path, file));
  await removeEmptyFolders(path, stale);
  for (const file of last) await move(file);
  for (const folder of [...folders, '']) await syncFolder(join(path, folder));
  await writeManifest(path, { complete: true, files });
}
