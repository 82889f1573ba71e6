/**
 * Pushing of a folder to the Hub, as a commit of all its files, through @huggingface/hub. The token is read from the environment and
 * sent to the Hub's own address alone; no message has it.
 */
import { ArgumentError, BaloraError, fileError, NativeError } from '../errors.ts';
import { Endpoint, withoutToken } from '../io/hub/endpoint.ts';
import { isRepoId, isRevision } from '../io/hub/names.ts';
import { pushedFiles } from '../io/pushed_files.ts';
import { printable } from '../shown.ts';

/** Options of {@link pushFolder}. */
export interface PushOptions {
  /** The repository, `owner/name`; it is made if there is none. */
  readonly repo: string;
  /** Whether a repository that is made is private. Default: the setting of its owner on the Hub. */
  readonly private?: boolean | undefined;
  /** Branch of the commit. Default main. */
  readonly revision?: string | undefined;
  /** First line of the commit's message. */
  readonly message?: string | undefined;
  /** Address of the Hub. Default: HF_ENDPOINT, else https://huggingface.co. */
  readonly hubUrl?: string | undefined;
  /** Access token with the right to write. Default: HF_TOKEN. */
  readonly accessToken?: string | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Called with the path of each file that is to be pushed. */
  readonly onFile?: (path: string) => void;
}

const kHub = 'https://huggingface.co';
const kTimeoutMs = 60_000;

/**
 * Pushes the files of a folder, such as an adapter with its card or a merged model, as one commit. The record of a run (run/), files
 * whose names begin with a dot, and temporary files stay; a link to a file in the folder counts as that file.
 * @returns the address of the repository
 * @throws ArgumentError without a token or for a name that is none, FormatError for a folder without files and for a link that leads out of
 *   it, before anything is sent, NativeError with the Hub's own message where it refuses
 */
export async function pushFolder(folder: string, options: PushOptions): Promise<string> {
  const { repo, revision = 'main', message = 'Upload with balora', onFile } = options;
  const { hubUrl = process.env.HF_ENDPOINT ?? kHub } = options;
  const accessToken = (options.accessToken ?? process.env.HF_TOKEN ?? '').trim();
  if (!isRepoId(repo)) {
    throw new ArgumentError(`repo must be a name on the Hub, owner/name, got "${printable(repo)}"`);
  }
  if (!isRevision(revision)) {
    throw new ArgumentError(`revision must be the name of a branch, got "${printable(revision)}"`);
  }
  if (accessToken === '') {
    throw new ArgumentError('push needs an access token with the right to write; set HF_TOKEN');
  }
  const { name } = new Endpoint({ hubUrl, accessToken, timeoutMs: kTimeoutMs });
  const files = await pushedFiles(folder);
  if (files.length === 0) {
    throw fileError(
      folder,
      'holds no files to push',
      'give the folder of an adapter or of a model',
    );
  }
  for (const { path } of files) onFile?.(path);
  // Imported when needed, since nothing else uses it.
  const hub = await import('@huggingface/hub');
  const call = { accessToken, hubUrl: name, repo: { type: 'model', name: repo } } as const;
  try {
    if (!(await hub.repoExists(call))) {
      const visibility =
        options.private === undefined ? undefined : options.private ? 'private' : 'public';
      await hub.createRepo({ ...call, ...(visibility !== undefined && { visibility }) });
    }
    await hub.commit({
      ...call,
      ...{ title: message, branch: revision },
      ...(options.signal !== undefined && { abortSignal: options.signal }),
      operations: files.map((file) => ({ operation: 'addOrUpdate' as const, ...file })),
    });
  } catch (error) {
    if (options.signal?.aborted) throw options.signal.reason;
    // A file is not what it was any more.
    if (error instanceof BaloraError) throw error;
    const text = error instanceof Error ? error.message : String(error);
    throw new NativeError(
      `push to ${name}/${repo}: ${withoutToken(printable(text), { accessToken })}`,
      {
        code: 'ERR_NETWORK',
        advice:
          "check the token's right to write and the connection, and push again: files that are there are not sent twice",
      },
    );
  }
  return `${name}/${repo}`;
}
