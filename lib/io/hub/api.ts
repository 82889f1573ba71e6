/** The three requests to the Hub: the commit of a revision, the files of a commit, the bytes of a file. */
import { printable, shown } from '../../shown.ts';
import { type Answer, type Endpoint, HubError, readAll } from './endpoint.ts';
import { isCommit, pathProblem } from './names.ts';

/** A file of a repository as a row of the Hub's list, in which nothing is checked yet. */
export type FileRow = Readonly<Record<string, unknown>>;

/** A file of a repository in a form that is safe to use. */
export interface RepoFile {
  /** Relative path of plain segments. */
  readonly path: string;
  readonly bytes: number;
  readonly hash: FileHash;
}

/** The hash that names a file's contents: SHA-256 for files in LFS (and Xet), the SHA-1 of git's blob for others. */
export interface FileHash {
  readonly kind: 'sha256' | 'git-sha1';
  /** The hash in lower-case hex digits. */
  readonly hex: string;
}

/** Largest size of an answer with all of its pages. */
const kMaxJsonBytes = 16 * 2 ** 20;
const kMaxPages = 100;
/** Number of times that the download of one file is resumed after the connection broke off. */
const kMaxResumes = 5;

/** The commit of a revision. @throws HubError where the server names no commit, or another one than it was asked for */
export async function commitOf(
  endpoint: Endpoint,
  { repo, revision }: { repo: string; revision: string },
): Promise<string> {
  const what = `commit of ${revision}`;
  const path = `/api/models/${repo}/revision/${encodeURIComponent(revision)}?expand=sha`;
  const answer = await endpoint.get(endpoint.urlOf(path), { what });
  const { json } = await readJson(answer, { what, maxBytes: kMaxJsonBytes });
  const { sha } = (json ?? {}) as { sha?: unknown };
  if (!isCommit(sha)) {
    throw new HubError(`${what}: sha must be 40 lower-case hex digits, got ${quoted(sha)}`);
  }
  if (isCommit(revision) && sha !== revision)
    throw new HubError(`${what}: the server gives ${sha}`);
  return sha;
}

/**
 * The files of a commit by their paths.
 * @param where recursive: whether to include those in subfolders
 * @throws HubError for an answer of another form, or one without end
 */
export async function listFiles(
  endpoint: Endpoint,
  { repo, sha, recursive }: { repo: string; sha: string; recursive: boolean },
): Promise<Map<string, FileRow>> {
  const what = 'list of files';
  const rows = new Map<string, FileRow>();
  let next: URL | null = endpoint.urlOf(`/api/models/${repo}/tree/${sha}?recursive=${recursive}`);
  let left = kMaxJsonBytes;
  for (let pages = 0; next !== null; ++pages) {
    if (pages === kMaxPages) throw new HubError(`${what}: more than ${kMaxPages} pages`);
    const answer: Answer = await endpoint.get(next, { what });
    const { json, bytes } = await readJson(answer, { what, maxBytes: left });
    left -= bytes;
    if (!Array.isArray(json)) throw new HubError(`${what}: must be an array`);
    for (const row of json as (FileRow | null)[]) {
      if (row?.type === 'file' && typeof row.path === 'string') rows.set(row.path, row);
    }
    next = nextPage(answer);
  }
  return rows;
}

/** Checks a row of the Hub's list. @throws HubError naming what is wrong with it */
export function checkedFile(row: FileRow): RepoFile {
  const path = row.path as string;
  const problem = pathProblem(path);
  if (problem !== null) {
    throw new HubError(`the server lists a file ${quoted(path)}, which is refused: ${problem}`);
  }
  const { size } = row;
  if (!Number.isSafeInteger(size) || (size as number) < 0) {
    throw new HubError(`${path}: size must be a whole number of bytes, got ${quoted(size)}`);
  }
  return { path, bytes: size as number, hash: hashOf(path, row) };
}

/**
 * The bytes of a file. Where the connection breaks off, the missing part is requested, a few times: the hash shows in the end
 * whether the parts belong together.
 * @throws HubError
 */
export async function* readFile(
  endpoint: Endpoint,
  { repo, sha, file }: { repo: string; sha: string; file: RepoFile },
): AsyncGenerator<Uint8Array> {
  const encoded = file.path.split('/').map(encodeURIComponent).join('/');
  const url = endpoint.urlOf(`/${repo}/resolve/${sha}/${encoded}`);
  let from = 0;
  let answered = false;
  let broken: HubError | null = null;
  for (let breaks = 0; broken === null || from < file.bytes; ++breaks) {
    try {
      const answer = await endpoint.get(url, { what: file.path, large: true, from });
      answered = true;
      for await (const chunk of answer.chunks()) {
        from += chunk.length;
        yield chunk;
      }
      return;
    } catch (error) {
      const again = answered && error instanceof HubError && error.failure === 'broken';
      // A server that cannot send parts of a file is handled like one that breaks off.
      if (!again || breaks === kMaxResumes) throw broken ?? error;
      broken = error;
    }
  }
}

function hashOf(path: string, { lfs, oid }: FileRow): FileHash {
  if (lfs !== undefined && lfs !== null) {
    const hex = (lfs as { oid?: unknown }).oid;
    if (typeof hex === 'string' && /^[0-9a-f]{64}$/.test(hex)) return { kind: 'sha256', hex };
    throw new HubError(`${path}: lfs.oid must be 64 lower-case hex digits, got ${quoted(hex)}`);
  }
  if (isCommit(oid)) return { kind: 'git-sha1', hex: oid };
  throw new HubError(`${path}: oid must be 40 lower-case hex digits, got ${quoted(oid)}`);
}

async function readJson(
  answer: Answer,
  { what, maxBytes }: { what: string; maxBytes: number },
): Promise<{ json: unknown; bytes: number }> {
  const text = await readAll(answer.chunks(), { what, maxBytes });
  try {
    return { json: JSON.parse(text.toString()), bytes: text.length };
  } catch {
    const type = printable(answer.headers.get('content-type') ?? 'no type', 60);
    const where = printable(answer.url.origin + answer.url.pathname);
    throw new HubError(`${what}: ${where} answers something else than JSON (${type})`);
  }
}

/** The address of the page behind this one, from the header `Link: <address>; rel="next"`. */
function nextPage({ headers, url }: Answer): URL | null {
  const link = /<([^<>]+)>\s*;\s*rel="next"/.exec(headers.get('link') ?? '')?.[1];
  if (link === undefined) return null;
  if (!URL.canParse(link, url.href))
    throw new HubError('list of files: the next page has no address');
  return new URL(link, url);
}

function quoted(value: unknown): string {
  return shown(value, 120);
}
