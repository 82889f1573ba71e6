/**
 * One repository in the cache shared with Python's huggingface_hub: blobs named by the hash of their contents, a snapshot of links
 * to them for each commit, refs from branches and tags to commits. Everything written is verified first and appears whole; nothing
 * is read or written through a link that leads out of the repository's folder.
 */
import { createHash, type Hash, randomUUID } from 'node:crypto';
import type { Stats } from 'node:fs';
import {
  lstat,
  mkdir,
  open,
  readdir,
  realpath,
  rename,
  rm,
  stat,
  symlink,
  writeFile,
} from 'node:fs/promises';
import { homedir } from 'node:os';
import { basename, dirname, join, relative } from 'node:path';
import { type FormatError, fileError } from '../../errors.ts';
import { discard, diskError, makeFolder, syncFolder } from '../files.ts';
import { isOwn } from '../own_files.ts';
import { readText } from '../regular_file.ts';
import type { FileHash, RepoFile } from './api.ts';
import { HubError } from './endpoint.ts';
import { isCommit } from './names.ts';

const kIncomplete = '.incomplete';
const kUuid = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/; // Python's own downloads have names of another form
/** Age after which a download that is not written to counts as abandoned: one day. */
const kAbandonedMs = 24 * 3600 * 1000;

/** The cache's folder, by the variables that Python's huggingface_hub reads. */
export function defaultCacheDir(): string {
  const { HF_HUB_CACHE, HUGGINGFACE_HUB_CACHE, HF_HOME, XDG_CACHE_HOME } = process.env;
  const given = HF_HUB_CACHE || HUGGINGFACE_HUB_CACHE;
  if (given) return given;
  return join(HF_HOME || join(XDG_CACHE_HOME || join(homedir(), '.cache'), 'huggingface'), 'hub');
}

export class RepoCache {
  /** The repository's own folder. It may be a link, as the cache itself may: whoever owns the cache put it there. */
  readonly folder: string;

  /** @param repo an id, as isRepoId has it */
  constructor(cacheDir: string, repo: string) {
    this.folder = join(cacheDir, `models--${repo.replace('/', '--')}`);
  }

  /**
   * The commit that the cache has for a branch, a tag or a commit; null if it has none.
   * @throws FormatError for a ref that holds something else
   */
  async commitOf(revision: string): Promise<string | null> {
    if (isCommit(revision)) return revision;
    const text = await this.#onDisk('read', () => this.#readRef(revision));
    if (text === null) return null;
    const sha = text.trim();
    if (isCommit(sha)) return sha;
    const path = this.#refPath(revision);
    throw fileError(path, 'holds no commit (40 hex digits)', 'remove it');
  }

  /**
   * The folder of a commit and the names of the files in it that can be read; null if it is not there.
   * @throws FormatError naming a link that leads out
   */
  snapshot(sha: string): Promise<{ folder: string; names: string[] } | null> {
    return this.#onDisk('read', async () => {
      const folder = join(this.folder, 'snapshots', sha);
      if ((await statOrNull(folder)) === null) return null;
      await this.#requireWithin(folder, 'snapshots', sha);
      const names: string[] = [];
      for (const name of await readdir(folder)) {
        if (await this.#readable(sha, name)) names.push(name);
      }
      return { folder, names };
    });
  }

  /**
   * The path of a file of a commit, or null if it is missing. `path` is one that pathProblem accepts.
   * @throws FormatError as snapshot() does
   */
  async file(sha: string, path: string): Promise<string | null> {
    const readable = await this.#onDisk('read', () => this.#readable(sha, path));
    return readable ? join(this.folder, 'snapshots', sha, path) : null;
  }

  /**
   * Adds a file of a commit to the cache, unless it is there: a blob under its hash and a link to it in the snapshot. A file of
   * another size than announced is replaced.
   * @param download gives its bytes, called where the blob is missing
   * @throws HubError for bytes that are not those announced, FormatError for a link that leads out, NativeError where the disk
   *   is full or refuses
   */
  add(sha: string, file: RepoFile, download: () => AsyncIterable<Uint8Array>): Promise<void> {
    return this.#onDisk('write', () => this.#add(sha, file, download));
  }

  async #add(
    sha: string,
    file: RepoFile,
    download: () => AsyncIterable<Uint8Array>,
  ): Promise<void> {
    const { hash, bytes } = file;
    const link = join(this.folder, 'snapshots', sha, file.path);
    if ((await this.#readable(sha, file.path)) && (await isFile(link, bytes))) {
      // Where links are not supported, Python stores the file itself here.
      const own = (await lstat(link)).isFile();
      if (own || basename(await realpath(link)) === hash.hex) return;
    }
    await this.#makeFolder('snapshots', sha, ...file.path.split('/').slice(0, -1));
    const blob = join(await this.#makeFolder('blobs'), hash.hex);
    if ((await statOrNull(blob)) !== null) await this.#requireWithin(blob, 'blobs', hash.hex);
    if (!(await isFile(blob, bytes))) {
      await this.#removeAbandoned();
      await this.#moveIntoPlace(blob, async (temporary) => {
        await writeVerified(temporary, file, download);
      });
    }
    await this.#moveIntoPlace(link, (temporary) =>
      symlink(relative(dirname(link), blob), temporary),
    );
  }

  /** Makes a branch or a tag refer to a commit. */
  async setRef(revision: string, sha: string): Promise<void> {
    if (revision === sha) return;
    const path = this.#refPath(revision);
    await this.#onDisk('write', async () => {
      // A read-only cache works as long as nothing changes.
      if ((await this.#readRef(revision)) === sha) return;
      await this.#makeFolder('refs', ...revision.split('/').slice(0, -1));
      await this.#moveIntoPlace(path, (temporary) => writeFile(temporary, sha, { flag: 'wx' }));
    });
  }

  /** Runs work on the cache's files. @throws NativeError where the disk fails */
  async #onDisk<T>(doing: 'read' | 'write', work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (error) {
      throw diskError(this.folder, error, doing);
    }
  }

  /** The commit that a ref refers to; null if there is none. @throws FormatError as snapshot() does */
  async #readRef(revision: string): Promise<string | null> {
    const path = this.#refPath(revision);
    if ((await statOrNull(path)) === null) return null;
    await this.#requireWithin(path, 'refs', ...revision.split('/'));
    return readText(path);
  }

  #refPath(revision: string): string {
    return join(this.folder, 'refs', ...revision.split('/'));
  }

  /** Whether a name in a snapshot leads to an existing file. @throws FormatError where that is outside the repository */
  async #readable(sha: string, path: string): Promise<boolean> {
    const [root, target] = await Promise.all([
      realpathOrNull(this.folder),
      realpathOrNull(join(this.folder, 'snapshots', sha, path)),
    ]);
    if (root === null || target === null) return false;
    if (isOwn(target, join(root, 'snapshots', sha), root)) return true;
    throw leadsOut(join(this.folder, 'snapshots', sha, path), target);
  }

  /** The path of a folder of the repository, created if missing. @throws FormatError where a link or a file has its name */
  async #makeFolder(...segments: string[]): Promise<string> {
    await makeFolder(this.folder);
    let folder = this.folder;
    for (const segment of segments) {
      folder = join(folder, segment);
      await mkdir(folder).catch((error: NodeJS.ErrnoException) => {
        if (error.code !== 'EEXIST') throw diskError(folder, error);
      });
      const info = await lstat(folder);
      if (info.isSymbolicLink()) throw leadsOut(folder, await realpath(folder).catch(() => '?'));
      if (!info.isDirectory()) {
        throw fileError(folder, 'is in the way of a folder', 'remove it');
      }
    }
    return folder;
  }

  /** Checks that `path`, with all links resolved, is at its place below the repository's folder. @throws FormatError if not */
  async #requireWithin(path: string, ...segments: string[]): Promise<void> {
    const [root, target] = await Promise.all([realpath(this.folder), realpath(path)]);
    if (target !== join(root, ...segments)) throw leadsOut(path, target);
  }

  /** Removes downloads that killed processes left behind: those that have not been written to for a day. */
  async #removeAbandoned(): Promise<void> {
    const folder = join(this.folder, 'blobs');
    for (const name of await readdir(folder)) {
      if (!name.endsWith(kIncomplete) || !kUuid.test(basename(name, kIncomplete))) continue;
      const path = join(folder, name);
      const { mtimeMs = Number.POSITIVE_INFINITY } = (await lstat(path).catch(absent)) ?? {};
      if (Date.now() - mtimeMs > kAbandonedMs) await rm(path, { force: true });
    }
  }

  /**
   * Puts the result that `make` writes under a temporary name at `path`. Temporary names are among the blobs, where no reader looks
   * for a snapshot's files or for refs, and differ for every call: processes may write the same file at once.
   */
  async #moveIntoPlace(path: string, make: (temporary: string) => Promise<void>): Promise<void> {
    const temporary = join(await this.#makeFolder('blobs'), `${randomUUID()}${kIncomplete}`);
    try {
      await make(temporary);
      await rename(temporary, path);
      await syncFolder(dirname(path));
    } catch (error) {
      await discard(temporary);
      throw diskError(path, error);
    }
  }
}

/** Writes a file that must not exist yet, up to the disk. @throws HubError where the bytes are not those announced */
async function writeVerified(
  temporary: string,
  { path, bytes, hash }: RepoFile,
  download: () => AsyncIterable<Uint8Array>,
): Promise<void> {
  const out = await open(temporary, 'wx');
  try {
    const sum = hasher(hash, bytes);
    let written = 0;
    for await (const chunk of download()) {
      written += chunk.length;
      if (written > bytes) throw new HubError(`${path} is longer than its ${bytes} bytes`);
      sum.update(chunk);
      await out.writeFile(chunk);
    }
    if (written !== bytes) throw new HubError(`${path} ended after ${written} of ${bytes} bytes`);
    const found = sum.digest('hex');
    if (found !== hash.hex) {
      const kind = hash.kind === 'sha256' ? 'SHA-256' : "git's SHA-1";
      throw new HubError(
        `${path}: ${kind} of what came is ${found}, not ${hash.hex}: it was damaged on its way, try again`,
      );
    }
    await out.sync();
  } finally {
    await out.close();
  }
}

function hasher({ kind }: FileHash, bytes: number): Hash {
  return kind === 'sha256' ? createHash('sha256') : createHash('sha1').update(`blob ${bytes}\0`);
}

async function isFile(path: string, bytes: number): Promise<boolean> {
  const info = await statOrNull(path);
  return info?.isFile() === true && info.size === bytes;
}

function leadsOut(path: string, target: string): FormatError {
  return fileError(
    path,
    `leads out of its place in the Hub's cache, to ${target}`,
    'remove it, and it is fetched again',
  );
}

function statOrNull(path: string): Promise<Stats | null> {
  return stat(path).catch(absent);
}

function realpathOrNull(path: string): Promise<string | null> {
  return realpath(path).catch(absent);
}

function absent(error: NodeJS.ErrnoException): null {
  if (['ENOENT', 'ENOTDIR', 'ELOOP'].includes(error.code ?? '')) return null;
  throw error;
}
