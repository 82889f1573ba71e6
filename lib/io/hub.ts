/**
 * Resolution of what a user names (a folder, a .gguf file, a model id on the Hub) to files on this machine. Downloads go to the
 * cache shared with Python's huggingface_hub, and are limited to the files that a model and its tokenizer need.
 */
import { ArgumentError, FormatError, NativeError } from '../errors.ts';
import {
  type CallTable,
  checkArgument,
  checkCall,
  finiteNumber,
  kCall,
  optionsOf,
} from '../options/call.ts';
import { printable } from '../shown.ts';
import { checkedFile, commitOf, listFiles, type RepoFile, readFile } from './hub/api.ts';
import { defaultCacheDir, RepoCache } from './hub/cache.ts';
import {
  Endpoint,
  type EndpointOptions,
  HubError,
  kMaxTimeoutMs,
  withoutToken,
} from './hub/endpoint.ts';
import { isRepoId, isRevision, pathProblem } from './hub/names.ts';
import { isModelFolder, SINGLE_WEIGHTS, WEIGHTS_INDEX } from './model_folder.ts';
import { kMaxTextBytes, statPath } from './regular_file.ts';

/** Options for finding a name on the Hub. */
export interface ResolveOptions {
  /** Branch, tag or commit of the repository (default main). */
  revision?: string;
  /** Address of the Hub. Default: HF_ENDPOINT, else https://huggingface.co. */
  hubUrl?: string;
  /** Folder of the cache. Default: HF_HUB_CACHE, HF_HOME/hub, or ~/.cache/huggingface/hub. */
  cacheDir?: string;
  /** Access token, '' for none. Default: HF_TOKEN. It is sent only to the Hub's own address, and over http only to this machine. */
  accessToken?: string;
  /** Whether to use the cache only and never ask the Hub. Default: HF_HUB_OFFLINE is 1. */
  offline?: boolean;
  /** Milliseconds that the Hub may take for 64 KiB of a file, or for one page of its lists (default 60 000). */
  timeoutMs?: number;
  /** Signal that stops the download. */
  signal?: AbortSignal;
  /** Called before each file is downloaded, with its path and size. */
  onDownload?: (path: string, bytes: number) => void;
}

/** The kinds of the options. */
export const hubTable: CallTable<ResolveOptions> = {
  revision: kCall.text,
  hubUrl: kCall.text,
  cacheDir: kCall.text,
  accessToken: { ...kCall.text, isSecret: true },
  offline: kCall.boolean,
  timeoutMs: finiteNumber({ least: 0, above: true, most: kMaxTimeoutMs }),
  signal: kCall.signal,
  onDownload: kCall.function,
};

const kTokenizerFiles = [
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'chat_template.jinja',
];
const kModelFiles = ['config.json', 'generation_config.json', SINGLE_WEIGHTS, WEIGHTS_INDEX];
const kShard = /^model-\d+-of-\d+\.safetensors$/;
const kFileInRepo = /^([^/]+\/[^/]+)\/(.+\.gguf)$/s;
const kHub = 'https://huggingface.co';
const kTimeoutMs = 60_000;
/** Largest number of file names in a message. */
const kMaxShownNames = 40;
const kMalformedAdvice =
  'try again, and check that this is the address of a Hub (hubUrl, HF_ENDPOINT)';

/**
 * Resolves `nameOrPath` to a folder or file. A path that exists is itself; `owner/name` is a model on the Hub, and
 * `owner/name/file.gguf` one file of it.
 * @throws FormatError for what is neither, for what is no answer of a Hub, and for a damaged cache; NativeError when the Hub cannot be
 *   reached and the cache has no whole model, and when the cache cannot be read or written
 */
export function resolveModel(nameOrPath: string, options: ResolveOptions = {}): Promise<string> {
  return resolve(nameOrPath, options, kModel);
}

/** Resolves a name as {@link resolveModel} does, for a function that has options beside those of the Hub. */
export function findModel(nameOrPath: string, options: ResolveOptions): Promise<string> {
  return resolveModel(nameOrPath, optionsOf(hubTable, options));
}

/** Resolves a name of which only the tokenizer is needed: weights are left on the Hub, unless a GGUF file is both. */
export function resolveTokenizer(nameOrPath: string, options: ResolveOptions): Promise<string> {
  return resolve(nameOrPath, options, kTokenizer);
}

async function resolve(
  nameOrPath: string,
  options: ResolveOptions,
  choice: Choice,
): Promise<string> {
  checkArgument('the Hub: the name or path', kCall.text, nameOrPath);
  checkCall('the Hub', options, hubTable);
  if (await exists(nameOrPath)) return nameOrPath;
  const { revision = 'main', cacheDir = defaultCacheDir(), onDownload } = options;
  const { offline = process.env.HF_HUB_OFFLINE === '1', signal } = options;
  if (cacheDir === '') throw new ArgumentError('cacheDir must be a path, got ""');
  const { repo, file } = parseName(nameOrPath);
  if (!isRevision(revision)) {
    throw new ArgumentError(
      `revision must be the name of a branch or a tag, or a commit, got "${printable(revision)}"`,
    );
  }
  const cache = new RepoCache(cacheDir, repo);
  const wanted: Wanted = { repo, file, choice, revision, cache };
  if (offline) {
    const cached = await findCached(wanted);
    if (cached !== null) return cached;
    throw new NativeError(`${nameOrPath} is not in the cache ${cacheDir}, and offline mode is on`, {
      code: 'ERR_NETWORK',
    });
  }
  const access = accessOf(options);
  const endpoint = new Endpoint(access);
  try {
    return await download(endpoint, wanted, onDownload);
  } catch (error) {
    if (signal?.aborted) throw signal.reason;
    if (!(error instanceof HubError)) throw error;
    const cached = error.unreachable ? await findCached(wanted) : null;
    if (cached !== null) return cached;
    const reason = withoutToken(error.message, access);
    const message = `${nameOrPath}: cannot be fetched from ${endpoint.name}: ${reason}`;
    const { cause } = error;
    if (error.malformed) throw new FormatError(message, { cause, advice: kMalformedAdvice });
    throw new NativeError(message, { code: 'ERR_NETWORK', cause });
  }
}

/** Whether a name is a path here. A path that may not be looked at is an error: it is no name on the Hub, either. */
async function exists(nameOrPath: string): Promise<boolean> {
  if (nameOrPath === '' || nameOrPath.includes('\0')) return false;
  try {
    return (await statPath(nameOrPath)) !== null;
  } catch (error) {
    const { code } = (error as { cause?: NodeJS.ErrnoException }).cause ?? {};
    if (code === 'ENAMETOOLONG') return false;
    throw error;
  }
}

/**
 * Splits a name into repository and file.
 * @throws FormatError for what is neither an id nor a file of one, and so a file or folder that is missing; ArgumentError for no name at all
 */
function parseName(name: string): { repo: string; file: string | null } {
  const [, repo = name, file = null] = kFileInRepo.exec(name) ?? [];
  if (!isRepoId(repo)) {
    const message = `"${printable(name)}" is no file or folder here, and no model id (owner/name) either`;
    if (name === '') throw new ArgumentError(`${message}; check the spelling`);
    throw new FormatError(message, { path: name, advice: 'check the spelling' });
  }
  const problem = file === null ? null : pathProblem(file);
  if (problem !== null) {
    throw new FormatError(`"${printable(name)}" names no file of a repository (${problem})`, {
      path: name,
      advice: 'check the path, or write owner/name/file.gguf',
    });
  }
  return { repo, file };
}

function accessOf(options: ResolveOptions): EndpointOptions {
  const { hubUrl = process.env.HF_ENDPOINT, accessToken = process.env.HF_TOKEN ?? '' } = options;
  const { timeoutMs = kTimeoutMs, signal } = options;
  return { hubUrl: hubUrl || kHub, accessToken: accessToken.trim(), timeoutMs, signal };
}

/** The selection of files that serves one purpose. */
interface Choice {
  /** Chooses the wanted files of a repository. @throws ArgumentError where none of its files serves */
  choose(names: readonly string[], repo: string): string[];
  /** Whether files that are on this machine already are enough. */
  serves(names: readonly string[]): boolean;
}

const kModel: Choice = {
  choose: selectModelFiles,
  serves: (names) => isModelFolder(names) || names.some(isGguf),
};
const kTokenizer: Choice = {
  choose: selectTokenizerFiles,
  serves: (names) => names.includes('tokenizer.json') || names.some(isGguf),
};

/** A request to the Hub, and the cache that its files go to. */
interface Wanted {
  repo: string;
  /** The only file that is wanted; null: those of `choice`. */
  file: string | null;
  choice: Choice;
  revision: string;
  cache: RepoCache;
}

/** Asks the Hub and fetches the files that are missing. @throws HubError, and the errors of RepoCache */
async function download(
  endpoint: Endpoint,
  { repo, file, choice, revision, cache }: Wanted,
  onDownload: ResolveOptions['onDownload'],
): Promise<string> {
  const sha = await commitOf(endpoint, { repo, revision });
  const rows = await listFiles(endpoint, { repo, sha, recursive: file !== null });
  const paths = file === null ? choice.choose([...rows.keys()], repo) : [file];
  const files = paths.map((path) => {
    const row = rows.get(path);
    if (row === undefined) {
      throw new ArgumentError(`${repo} has no file ${path}; choose one of the files on its page`);
    }
    return notTooLarge(checkedFile(row));
  });
  for (const entry of files) {
    await cache.add(sha, entry, () => {
      onDownload?.(entry.path, entry.bytes);
      return readFile(endpoint, { repo, sha, file: entry });
    });
  }
  await cache.setRef(revision, sha);
  const path = file === null ? (await cache.snapshot(sha))?.folder : await cache.file(sha, file);
  if (path) return path;
  throw new NativeError(
    `${cache.folder}: ${repo} was taken away from the cache while it was fetched`,
    {
      code: 'ERR_IO',
    },
  );
}

/** Refuses a file that is too large, because all files but weights are read into memory whole. @throws HubError */
function notTooLarge(file: RepoFile): RepoFile {
  if (/\.(safetensors|gguf)$/.test(file.path) || file.bytes <= kMaxTextBytes) return file;
  throw new HubError(`${file.path}: ${file.bytes} bytes are more than ${kMaxTextBytes}`);
}

/** Finds the wanted files without the Hub; null where the cache lacks one of them. @throws FormatError as RepoCache does */
async function findCached({ file, choice, revision, cache }: Wanted): Promise<string | null> {
  const sha = await cache.commitOf(revision);
  if (sha === null) return null;
  if (file !== null) return cache.file(sha, file);
  const found = await cache.snapshot(sha);
  return found !== null && choice.serves(found.names) ? found.folder : null;
}

/** Chooses safetensors files and what belongs with them; in a repository without any, its only GGUF file. */
function selectModelFiles(names: readonly string[], repo: string): string[] {
  const wanted = names.filter(
    (name) => kModelFiles.includes(name) || kShard.test(name) || kTokenizerFiles.includes(name),
  );
  if (names.some((name) => name.endsWith('.safetensors'))) {
    // A single file and shards side by side hold the same weights.
    const single = wanted.includes(SINGLE_WEIGHTS);
    return wanted.filter((name) => !single || !(kShard.test(name) || name === WEIGHTS_INDEX));
  }
  return [...wanted, onlyGguf(names, repo, 'neither safetensors nor GGUF weights')];
}

/** Chooses tokenizer.json and what belongs with it; in a repository without it, its only GGUF file. */
function selectTokenizerFiles(names: readonly string[], repo: string): string[] {
  const wanted = names.filter((name) => kTokenizerFiles.includes(name));
  if (names.includes('tokenizer.json')) return wanted;
  return [...wanted, onlyGguf(names, repo, 'neither a tokenizer.json nor a GGUF file')];
}

/**
 * The only GGUF file of a repository.
 * @throws ArgumentError where there are several or none; `neither` says what else was looked for
 */
function onlyGguf(names: readonly string[], repo: string, neither: string): string {
  const ggufs = names.filter(isGguf);
  if (ggufs.length === 1) return ggufs[0] as string;
  if (ggufs.length === 0) {
    throw new ArgumentError(`${repo} holds ${neither}; choose another repository or revision`);
  }
  const some = ggufs.slice(0, kMaxShownNames).map((name) => `${repo}/${printable(name)}`);
  const rest = ggufs.length > kMaxShownNames ? `, and ${ggufs.length - kMaxShownNames} more` : '';
  throw new ArgumentError(`${repo} holds several GGUF files; name one: ${some.join(', ')}${rest}`);
}

function isGguf(name: string): boolean {
  return name.endsWith('.gguf');
}
