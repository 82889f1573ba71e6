/**
 * From what a user names (a folder, a .gguf file, a model id on the Hub) to files on this machine. Downloads go to the
 * cache that Python's huggingface_hub shares, through @huggingface/hub; only what a model and its tokenizer need.
 */
import { randomUUID } from 'node:crypto';
import { existsSync } from 'node:fs';
import { mkdir, open, readdir, readFile, rename, rm, symlink, writeFile } from 'node:fs/promises';
import { dirname, join, relative } from 'node:path';
import {
  downloadFile,
  getHFHubCachePath,
  getRepoFolderName,
  type ListFileEntry,
  listFiles,
  modelInfo,
} from '@huggingface/hub';
import { ArgumentError, BaloraError, NativeError } from '../errors.ts';
import { diskError } from './files.ts';
import { isModelFolder, SINGLE_WEIGHTS, WEIGHTS_INDEX } from './model_folder.ts';

/** How a name on the hub is found. */
export interface ResolveOptions {
  /** Branch, tag or commit (default main). */
  revision?: string;
  /** Default: HF_ENDPOINT, else https://huggingface.co. */
  hubUrl?: string;
  /** Default: HF_HUB_CACHE, HF_HOME/hub, or ~/.cache/huggingface/hub. */
  cacheDir?: string;
  /** Default: HF_TOKEN. */
  accessToken?: string;
  /** Never ask the Hub, use the cache only. Default: HF_HUB_OFFLINE is 1. */
  offline?: boolean;
  /** Told of every file before it is downloaded. */
  onDownload?: (path: string, bytes: number) => void;
}

const kOfTokenizer = [
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'chat_template.jinja',
];
const kOfModel = ['config.json', 'generation_config.json', SINGLE_WEIGHTS, WEIGHTS_INDEX];
const kShard = /^model-\d+-of-\d+\.safetensors$/;
const kId = /^[\w-][\w.-]*\/[\w-][\w.-]*$/;
const kFileInRepo = /^([\w-][\w.-]*\/[\w-][\w.-]*)\/(.+\.gguf)$/;

/**
 * The folder or file that `nameOrPath` stands for. A path that exists is itself; `owner/name` is a model on the Hub, and
 * `owner/name/file.gguf` one file of it.
 * @throws ArgumentError for what is neither, NativeError when the Hub cannot be reached and the cache has no whole model
 */
export function resolveModel(nameOrPath: string, options: ResolveOptions = {}): Promise<string> {
  return resolve(nameOrPath, options, kModel);
}

/** The same where only the tokenizer is asked for: weights are left on the Hub, unless a GGUF file is both. */
export function resolveTokenizer(nameOrPath: string, options: ResolveOptions): Promise<string> {
  return resolve(nameOrPath, options, kTokenizer);
}

async function resolve(
  nameOrPath: string,
  options: ResolveOptions,
  choice: Choice,
): Promise<string> {
  if (existsSync(nameOrPath)) return nameOrPath;
  const [, repo = nameOrPath, file = null] = kFileInRepo.exec(nameOrPath) ?? [];
  if (!kId.test(repo)) {
    throw new ArgumentError(
      `"${nameOrPath}" is no file or folder here, and no model id (owner/name) either`,
    );
  }
  const {
    revision = 'main',
    hubUrl = process.env.HF_ENDPOINT,
    cacheDir = getHFHubCachePath(),
    accessToken = process.env.HF_TOKEN,
    offline = process.env.HF_HUB_OFFLINE === '1',
    onDownload,
  } = options;
  const snapshot = (folder: string): string => (file === null ? folder : join(folder, file));
  const found = await cachedSnapshot(cacheDir, repo, revision);
  const cached = found !== null && (await holds(found, file, choice)) ? snapshot(found) : null;
  if (offline) {
    if (cached !== null) return cached;
    throw new NativeError(`${nameOrPath} is not in the cache ${cacheDir}, and offline mode is on`);
  }
  const access = { ...(hubUrl && { hubUrl }), ...(accessToken && { accessToken }) };
  try {
    return snapshot(await download({ repo, file, choice, revision, cacheDir, access, onDownload }));
  } catch (error) {
    if (error instanceof BaloraError) throw error;
    if (isNetworkFailure(error) && cached !== null) return cached;
    throw new NativeError(
      `${nameOrPath}: cannot be fetched from ${hubUrl ?? 'the Hugging Face Hub'}: ${reasonOf(error)}`,
      { cause: error },
    );
  }
}

/** What a name is resolved for. */
interface Choice {
  /** Of the files of a repository those that are wanted. @throws ArgumentError where it has nothing that serves */
  choose(names: readonly string[], repo: string): string[];
  /** Whether files that are here already are enough. */
  serves(names: readonly string[]): boolean;
}

const kModel: Choice = {
  choose: modelFiles,
  serves: (names) => isModelFolder(names) || names.some(isGguf),
};
const kTokenizer: Choice = {
  choose: tokenizerFiles,
  serves: (names) => names.includes('tokenizer.json') || names.some(isGguf),
};

interface Download {
  repo: string;
  /** The only one that is wanted; null: those of `choice`. */
  file: string | null;
  choice: Choice;
  revision: string;
  cacheDir: string;
  access: { hubUrl?: string; accessToken?: string };
  onDownload: ResolveOptions['onDownload'];
}

async function download(request: Download): Promise<string> {
  const { repo, file, choice, revision, cacheDir, access } = request;
  const { sha } = await modelInfo({ name: repo, revision, additionalFields: ['sha'], ...access });
  const entries = new Map<string, ListFileEntry>();
  for await (const entry of listFiles({
    repo,
    revision: sha,
    recursive: file !== null,
    ...access,
  })) {
    if (entry.type === 'file') entries.set(entry.path, entry);
  }
  const chosen = file === null ? choice.choose([...entries.keys()], repo) : [file];
  const folder = join(cacheDir, repoFolder(repo));
  for (const path of chosen) {
    const entry = entries.get(path);
    if (entry === undefined) throw new ArgumentError(`${repo} has no file ${path}`);
    await fetchFile(entry, { ...request, folder, sha });
  }
  if (revision !== sha) await writeRef(cacheDir, repo, revision, sha);
  return join(folder, 'snapshots', sha);
}

/** One file into the cache: a blob under its hash, appearing whole, and a link to it in the snapshot. */
async function fetchFile(
  { path, size, oid, lfs, xetHash }: ListFileEntry,
  { repo, access, onDownload, folder, sha }: Download & { folder: string; sha: string },
): Promise<void> {
  const link = join(folder, 'snapshots', sha, path);
  if (existsSync(link)) return;
  const hash = lfs?.oid ?? xetHash ?? oid;
  if (hash === undefined || !/^[\w-]+$/.test(hash))
    throw new Error(`the Hub gives no hash for ${path}`);
  const blobPath = join(folder, 'blobs', hash);
  await mkdir(dirname(blobPath), { recursive: true });
  await mkdir(dirname(link), { recursive: true });
  if (!existsSync(blobPath)) {
    onDownload?.(path, size);
    const blob = await downloadFile({ repo, path, revision: sha, ...access });
    if (blob === null) throw new Error(`the Hub lists ${path}, but does not have it`);
    await writeBlob(blobPath, blob.stream() as unknown as AsyncIterable<Uint8Array>, {
      path,
      size,
    });
  }
  await linkTo(blobPath, link);
}

/** Another process may have been quicker, and a cache that was tidied may hold a link to nowhere, which is replaced. */
async function linkTo(blobPath: string, link: string): Promise<void> {
  for (;;) {
    try {
      await symlink(relative(dirname(link), blobPath), link);
      return;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
      if (existsSync(link)) return;
      await rm(link, { force: true });
    }
  }
}

async function writeBlob(
  blobPath: string,
  stream: AsyncIterable<Uint8Array>,
  { path, size }: { path: string; size: number },
): Promise<void> {
  // Model and tokenizer may be asked for at once, by one process.
  const incomplete = `${blobPath}.${randomUUID()}.incomplete`;
  try {
    const out = await open(incomplete, 'w');
    let written = 0;
    try {
      for await (const chunk of stream) {
        await out.writeFile(chunk);
        written += chunk.length;
      }
    } finally {
      await out.close();
    }
    if (written !== size) throw new Error(`${path} ended after ${written} of ${size} bytes`);
    await rename(incomplete, blobPath);
  } catch (error) {
    await rm(incomplete, { force: true });
    throw diskError(incomplete, error);
  }
}

/** Safetensors and what stands beside them; in a repository without any, its only GGUF file. */
function modelFiles(names: readonly string[], repo: string): string[] {
  const wanted = names.filter(
    (name) => kOfModel.includes(name) || kShard.test(name) || kOfTokenizer.includes(name),
  );
  if (names.some((name) => name.endsWith('.safetensors'))) {
    // A single file and shards side by side hold the same weights.
    const single = wanted.includes(SINGLE_WEIGHTS);
    return wanted.filter((name) => !single || !(kShard.test(name) || name === WEIGHTS_INDEX));
  }
  return [...wanted, onlyGguf(names, repo, 'neither safetensors nor GGUF weights')];
}

/** tokenizer.json and what goes with it; in a repository without it, its only GGUF file. */
function tokenizerFiles(names: readonly string[], repo: string): string[] {
  const wanted = names.filter((name) => kOfTokenizer.includes(name));
  if (names.includes('tokenizer.json')) return wanted;
  return [...wanted, onlyGguf(names, repo, 'neither a tokenizer.json nor a GGUF file')];
}

/** @throws ArgumentError where there are several, or `neither` says what else was looked for */
function onlyGguf(names: readonly string[], repo: string, neither: string): string {
  const ggufs = names.filter(isGguf);
  if (ggufs.length === 1) return ggufs[0] as string;
  throw new ArgumentError(
    ggufs.length === 0
      ? `${repo} holds ${neither}`
      : `${repo} holds several GGUF files; name one: ${ggufs.map((name) => `${repo}/${name}`).join(', ')}`,
  );
}

function isGguf(name: string): boolean {
  return name.endsWith('.gguf');
}

function repoFolder(repo: string): string {
  return getRepoFolderName({ name: repo, type: 'model' });
}

async function writeRef(
  cacheDir: string,
  repo: string,
  revision: string,
  sha: string,
): Promise<void> {
  const path = join(cacheDir, repoFolder(repo), 'refs', revision);
  await mkdir(dirname(path), { recursive: true });
  await writeFile(path, sha);
}

async function cachedSnapshot(
  cacheDir: string,
  repo: string,
  revision: string,
): Promise<string | null> {
  const folder = join(cacheDir, repoFolder(repo));
  const sha = await readFile(join(folder, 'refs', revision), 'utf8').catch(() => revision);
  const snapshot = join(folder, 'snapshots', sha.trim());
  return existsSync(snapshot) ? snapshot : null;
}

/** Whether a snapshot has the one file that is wanted, or those that serve; a link may lead nowhere. */
async function holds(folder: string, file: string | null, { serves }: Choice): Promise<boolean> {
  const isThere = (name: string): boolean => existsSync(join(folder, name));
  return file === null ? serves((await readdir(folder)).filter(isThere)) : isThere(file);
}

/** The Hub answered nothing at all, or that it is too busy to, as against an answer that says no. */
function isNetworkFailure(error: unknown): boolean {
  const { statusCode = 0 } = error as { statusCode?: number };
  return error instanceof TypeError || statusCode >= 500 || [408, 429].includes(statusCode);
}

function reasonOf(error: unknown): string {
  const { message, cause } = error as Error;
  return cause instanceof Error ? `${message} (${cause.message})` : message;
}
