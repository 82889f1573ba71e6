/**
 * The output folder of a run: its lock, which lets one process at a time use it, and the layout of its files.
 *
 *     <output>/adapter_config.json, adapter_model.safetensors      the result (a full model for method full)
 *     <output>/run/metrics.jsonl, config.json, checkpoints/        the record of the run
 *     <output>/run/lock                                            the process that is writing
 */
import { readFileSync } from 'node:fs';
import { open, readFile, rm, stat } from 'node:fs/promises';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { ADAPTER_CONFIG, ADAPTER_TENSORS } from '../adapters/peft_folder.ts';
import { ArgumentError } from '../errors.ts';
import { diskError, isRunning, makeFolder, namesIn, removeTemporaries } from '../io/files.ts';
import { COMPANIONS, SINGLE_WEIGHTS } from '../io/model_folder.ts';

export interface OutputFolder {
  readonly path: string;
  readonly run: string;
  readonly metrics: string;
  readonly config: string;
  readonly checkpoints: string;
  /** Releases this process's claim on the folder. */
  release(): Promise<void>;
}

export interface ClaimOptions {
  overwrite: boolean;
  resume: boolean;
}

/** Names of the files and folders that a run may have written; `overwrite` removes these and nothing else. */
const kRunFiles = new Set([
  'run',
  ADAPTER_CONFIG,
  ADAPTER_TENSORS,
  'residual',
  'initial',
  SINGLE_WEIGHTS,
  'config.json',
  ...COMPANIONS,
]);

/**
 * Checks whether claimOutput() would succeed, without changing anything, for callers with long work to do before the run.
 * @throws ArgumentError if the folder cannot be claimed
 */
export async function checkOutput(path: string, options: ClaimOptions): Promise<void> {
  const { overwrite, resume } = options;
  const names = await folderNames(path);
  if (names.length > 0 && !overwrite && !resume) {
    throw new ArgumentError(
      `output folder ${path} is not empty (${names.slice(0, 4).join(', ')}${names.length > 4 ? ', ...' : ''}); ` +
        'choose another one, or pass overwrite: true or resume: true',
    );
  }
  const lock = join(path, 'run', 'lock');
  const holder = await readHolder(lock);
  if (holder !== null && isAlive(holder)) throw inUse(path, lock, holder);
}

/**
 * Claims the folder for one run. Without `overwrite` or `resume` it must be absent or empty.
 * @throws ArgumentError if it holds anything else, is not a folder, or is in use by a living process.
 */
export async function claimOutput(path: string, options: ClaimOptions): Promise<OutputFolder> {
  await checkOutput(path, options);
  const run = join(path, 'run');
  const checkpoints = join(run, 'checkpoints');
  const lock = join(run, 'lock');
  try {
    await makeFolder(run);
    await acquireLock(lock, path);
    if (options.overwrite) await removeEarlierRun(path);
    await makeFolder(checkpoints);
    const exported = ['residual', 'initial'].map((name) => join(path, name));
    for (const folder of [path, run, checkpoints, ...exported]) await removeTemporaries(folder);
  } catch (error) {
    throw diskError(path, error);
  }
  return {
    path,
    run,
    metrics: join(run, 'metrics.jsonl'),
    config: join(run, 'config.json'),
    checkpoints,
    release: () => rm(lock, { force: true }),
  };
}

/**
 * The names in an output folder; none if the folder does not exist.
 * @throws ArgumentError for a file
 */
export async function folderNames(path: string): Promise<string[]> {
  const info = await stat(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return null;
    throw diskError(path, error, 'read');
  });
  if (info !== null && !info.isDirectory())
    throw new ArgumentError(`output ${path} is a file, not a folder; choose another path`);
  return namesIn(path);
}

/**
 * Removes everything that an earlier run wrote except the lock, which is now held by this process. Nothing is removed from a
 * folder without run/config.json, because it is not known to be a run's.
 */
async function removeEarlierRun(path: string): Promise<void> {
  const run = join(path, 'run');
  const inside = await namesIn(run);
  if (!inside.includes('config.json')) return;
  const own = (await namesIn(path)).filter((name) => kRunFiles.has(name) && name !== 'run');
  const paths = [
    ...own.map((name) => join(path, name)),
    ...inside
      .filter((name) => name !== 'lock' && name !== 'config.json')
      .map((name) => join(run, name)),
    join(run, 'config.json'), // removed last, so that an interrupted removal can be repeated
  ];
  for (const old of paths) await rm(old, { recursive: true, force: true });
}

interface LockHolder {
  pid: number;
  host: string;
  started: string | null;
}

async function acquireLock(lock: string, path: string): Promise<void> {
  const mine: LockHolder = {
    pid: process.pid,
    host: hostname(),
    started: processStart(process.pid),
  };
  for (let attempt = 0; attempt < 2; attempt++) {
    try {
      const file = await open(lock, 'wx');
      await file.writeFile(JSON.stringify(mine));
      await file.close();
      return;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
    }
    const holder = await readHolder(lock);
    if (holder !== null && isAlive(holder)) throw inUse(path, lock, holder);
    await rm(lock, { force: true });
  }
  throw new ArgumentError(
    `output folder ${path} is being claimed by another process; wait for it, or choose another folder`,
  );
}

function inUse(path: string, lock: string, { pid, host }: LockHolder): ArgumentError {
  return new ArgumentError(
    `output folder ${path} is in use by process ${pid} on ${host}; wait for it, choose another folder, or ` +
      `remove ${lock} if there is no such process`,
  );
}

/** Reads the holder of a lock; null for a lock that its writer did not finish. */
async function readHolder(lock: string): Promise<LockHolder | null> {
  try {
    return JSON.parse(await readFile(lock, 'utf8')) as LockHolder;
  } catch {
    return null;
  }
}

/**
 * Whether the process that holds a lock is still running. A lock from another machine counts as held, since its process cannot
 * be checked.
 */
function isAlive({ pid, host, started }: LockHolder): boolean {
  if (host !== hostname()) return true;
  return isRunning(pid) && (started === null || processStart(pid) === started);
}

/**
 * The start time of a process in the kernel's clock ticks, which distinguishes it from a later process with the same id; null
 * where it is not known.
 */
function processStart(pid: number): string | null {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'utf8');
    return text.slice(text.lastIndexOf(')') + 2).split(' ')[19] ?? null;
  } catch {
    return null;
  }
}
