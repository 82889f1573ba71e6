/**
 * The output folder of a run: who may use it, and where things lie in it.
 *
 *     <output>/adapter_config.json, adapter_model.safetensors      the result (a full model for method full)
 *     <output>/run/metrics.jsonl, config.json, checkpoints/        how it came about
 *     <output>/run/lock                                            the process that is writing
 */
import { readFileSync } from 'node:fs';
import { mkdir, open, readFile, rm, stat } from 'node:fs/promises';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { ADAPTER_CONFIG, ADAPTER_TENSORS } from '../adapters/peft_folder.ts';
import { ArgumentError } from '../errors.ts';
import { diskError, isRunning, namesIn, removeTemporaries } from '../io/files.ts';
import { COMPANIONS, SINGLE_WEIGHTS } from '../io/model_folder.ts';

export interface OutputFolder {
  readonly path: string;
  readonly run: string;
  readonly metrics: string;
  readonly config: string;
  readonly checkpoints: string;
  /** Ends this process's claim. */
  release(): Promise<void>;
}

export interface ClaimOptions {
  overwrite: boolean;
  resume: boolean;
}

/** What a run may have left behind; `overwrite` removes these and touches nothing else. */
const kOwnFiles = new Set([
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
 * What claimOutput() would say, without touching anything: for a caller who has long work to do before the run.
 * @throws ArgumentError
 */
export async function checkOutput(path: string, options: ClaimOptions): Promise<void> {
  const { overwrite, resume } = options;
  const names = await folderNames(path);
  if (names.length > 0 && !overwrite && !resume) {
    throw new ArgumentError(
      `output folder ${path} is not empty (${names.slice(0, 4).join(', ')}${names.length > 4 ? ', ...' : ''}): ` +
        'choose another one, or pass overwrite or resume',
    );
  }
  const lock = join(path, 'run', 'lock');
  const holder = await readHolder(lock);
  if (holder !== null && isAlive(holder)) throw inUse(path, lock, holder);
}

/**
 * Claims the folder for one run. Without `overwrite` or `resume` it must be absent or empty.
 * @throws ArgumentError if it holds anything else, is no folder, or is in use by a living process.
 */
export async function claimOutput(path: string, options: ClaimOptions): Promise<OutputFolder> {
  await checkOutput(path, options);
  const run = join(path, 'run');
  const checkpoints = join(run, 'checkpoints');
  const lock = join(run, 'lock');
  try {
    await mkdir(run, { recursive: true });
    await takeLock(lock, path);
    if (options.overwrite) await clear(path);
    await mkdir(checkpoints, { recursive: true });
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

/** Names in an output folder; none if it does not exist. @throws ArgumentError for a file */
export async function folderNames(path: string): Promise<string[]> {
  const info = await stat(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return null;
    throw error;
  });
  if (info !== null && !info.isDirectory())
    throw new ArgumentError(`output ${path} is a file, not a folder`);
  return namesIn(path);
}

/** Everything of an earlier run but the lock, which is ours by now. Without its config.json nothing is known to be a run's. */
async function clear(path: string): Promise<void> {
  const run = join(path, 'run');
  const inside = await namesIn(run);
  if (!inside.includes('config.json')) return;
  const own = (await namesIn(path)).filter((name) => kOwnFiles.has(name) && name !== 'run');
  const paths = [
    ...own.map((name) => join(path, name)),
    ...inside
      .filter((name) => name !== 'lock' && name !== 'config.json')
      .map((name) => join(run, name)),
    join(run, 'config.json'), // last: an interrupted removal is taken up again
  ];
  for (const old of paths) await rm(old, { recursive: true, force: true });
}

interface LockHolder {
  pid: number;
  host: string;
  started: string | null;
}

async function takeLock(lock: string, path: string): Promise<void> {
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
  throw new ArgumentError(`output folder ${path} is being claimed by another process`);
}

function inUse(path: string, lock: string, { pid, host }: LockHolder): ArgumentError {
  return new ArgumentError(
    `output folder ${path} is in use by process ${pid} on ${host}; if that is wrong, remove ${lock}`,
  );
}

/** null for a lock that its writer did not finish. */
async function readHolder(lock: string): Promise<LockHolder | null> {
  try {
    return JSON.parse(await readFile(lock, 'utf8')) as LockHolder;
  } catch {
    return null;
  }
}

/** A lock of another machine counts as held: its process cannot be asked. */
function isAlive({ pid, host, started }: LockHolder): boolean {
  if (host !== hostname()) return true;
  return isRunning(pid) && (started === null || processStart(pid) === started);
}

/** When a process began, in the kernel's ticks: tells a reused number from the same process. null where unknown. */
function processStart(pid: number): string | null {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'utf8');
    return text.slice(text.lastIndexOf(')') + 2).split(' ')[19] ?? null;
  } catch {
    return null;
  }
}
