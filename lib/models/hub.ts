/**
 * From what a user names (a folder, a .gguf file, a model id on the Hub) to files on this machine. Downloads go to the
 * cache that Python's huggingface_hub shares, through @huggingface/hub; only what a model and its tokenizer need.
 */
import { existsSync } from 'node:fs';
import { mkdir, open, readFile, rename, rm, symlink, writeFile } from 'node:fs/promises';
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
import { diskError } from '../io/files.ts';

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

const kWanted =
  /^(config\.json|generation_config\.json|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|chat_template\.(jinja|json)|model\.safetensors|model\.safetensors\.index\.json|model-\d+-of-\d+\.safetensors)$/;
const kId = /^[\w-][\w.-]*\/[\w-][\w.-]*$/;
const kFileInRepo = /^([\w-][\w.-]*\/[\w-][\w.-]*)\/(.+\.gguf)$/;

/**
 * The folder or file that `nameOrPath` stands for. A path that exists is itself; `owner/name` is a model on the Hub, and
 * `owner/name/file.gguf` one file of it.
 * @throws ArgumentError for what is neither, NativeError when the Hub cannot be reached and the cache has nothing
 */
export async function resolveModel(
  nameOrPath: string,
  options: ResolveOptions = {},
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
  const cached = await cachedSnapshot(cacheDir, repo, revision);
  if (offline) {
    if (cached !== null && existsSync(snapshot(cached))) return snapshot(cached);
    throw new NativeError(`${nameOrPath} is not in the cache ${cacheDir}, and offline mode is on`);
  }
  const access = { ...(hubUrl && { hubUrl }), ...(accessToken && { accessToken }) };
  try {
    return snapshot(await download({ repo, file, revision, cacheDir, access, onDownload }));
  } catch (error) {
    if (error instanceof BaloraError) throw error;
    if (isNetworkFailure(error) && cached !== null && existsSync(snapshot(cached)))
      return snapshot(cached);
    throw new NativeError(
      `${nameOrPath}: cannot be fetched from ${hubUrl ?? 'the Hugging Face Hub'}: ${reasonOf(error)}`,
      { cause: error },
    );
  }
}

interface Download {
  repo: string;
  file: string | null;
  revision: string;
  cacheDir: string;
  access: { hubUrl?: string; accessToken?: string };
  onDownload: ResolveOptions['onDownload'];
}

async function download(request: Download): Promise<string> {
  const { repo, file, revision, cacheDir, access } = request;
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
  const chosen = file === null ? chooseFiles([...entries.keys()], repo) : [file];
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
  await symlink(relative(dirname(link), blobPath), link);
}

async function writeBlob(
  blobPath: string,
  stream: AsyncIterable<Uint8Array>,
  { path, size }: { path: string; size: number },
): Promise<void> {
  const incomplete = `${blobPath}.${process.pid}.incomplete`;
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
function chooseFiles(names: readonly string[], repo: string): string[] {
  const wanted = names.filter((name) => kWanted.test(name));
  if (names.some((name) => name.endsWith('.safetensors'))) {
    // A single file and shards side by side hold the same weights.
    const single = wanted.includes('model.safetensors');
    return wanted.filter((name) => !single || !/^model-|index\.json$/.test(name));
  }
  const ggufs = names.filter((name) => name.endsWith('.gguf'));
  if (ggufs.length === 1) return [...wanted, ggufs[0] as string];
  throw new ArgumentError(
    ggufs.length === 0
      ? `${repo} holds neither safetensors nor GGUF weights`
      : `${repo} holds several GGUF files; name one: ${ggufs.map((name) => `${repo}/${name}`).join(', ')}`,
  );
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

/** The Hub answered nothing at all, as against an answer that says no. */
function isNetworkFailure(error: unknown): boolean {
  return (
    error instanceof TypeError ||
    /\b5\d\d\b/.test(String((error as { statusCode?: number }).statusCode ?? ''))
  );
}

function reasonOf(error: unknown): string {
  const { message, cause } = error as Error;
  return cause instanceof Error ? `${message} (${cause.message})` : message;
}
