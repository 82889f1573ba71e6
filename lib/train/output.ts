/**
 * The output folder of a run: its lock, which lets one process at a time use it, and the layout of its files.
 *
 *     <output>/adapter_config.json, adapter_model.safetensors      the result (a full model for method full)
 *     <output>/run/<RUN_FILES>                                     the record of the run; docs/training.md describes each file
 *     <output>/run/manifest.json                                   what of it is this run's: results whose names were free at its
 *                                                                  beginning, and the record
 *     <output>/run/lock                                            the process that is writing
 */
import { rmdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import {
  ADAPTER_CONFIG,
  ADAPTER_TENSORS,
  INITIAL_ADAPTER,
  LESS_ADAPTER,
  RESIDUAL_BASE,
} from '../adapters/peft_folder.ts';
import { ArgumentError, NativeError } from '../errors.ts';
import {
  diskError,
  folderNames,
  makeFolder,
  namesIn,
  removeAll,
  removeFile,
  removeTemporaries,
  writeFileAtomic,
} from '../io/files.ts';
import {
  acquireLock,
  type FolderLock,
  type LockHolder,
  livingHolder,
  OUTPUT_LOCK,
} from '../io/folder_lock.ts';
import { COMPANIONS, LOSS_PLOT, MODEL_CARD, SINGLE_WEIGHTS } from '../io/model_folder.ts';
import { isMissing, readText } from '../io/regular_file.ts';
import { isStepFolder, RUN, RUN_FILES } from '../io/run_folder.ts';
import { kTeacherCacheName } from '../tasks/teacher_cache.ts';

export interface OutputFolder {
  readonly path: string;
  readonly run: string;
  readonly config: string;
  readonly checkpoints: string;
  /** Checks that this process still has the folder. @throws NativeError if it was removed or given to another process */
  check(): Promise<void>;
  /** Releases this process's claim on the folder. */
  release(): Promise<void>;
}

export interface ClaimOptions {
  overwrite: boolean;
  resume: boolean;
}

const kAdapterFiles = [ADAPTER_CONFIG, ADAPTER_TENSORS];
const kModelFiles = [SINGLE_WEIGHTS, 'config.json', ...COMPANIONS];

/** Folders beside an adapter that some exports write. */
const kBeside = [RESIDUAL_BASE, INITIAL_ADAPTER, LESS_ADAPTER];

/** Paths, in the output folder, of all files that a run may write as its result. */
const kResultFiles: readonly string[] = [
  ...kAdapterFiles,
  ...kModelFiles,
  MODEL_CARD,
  LOSS_PLOT,
  ...kModelFiles.map((name) => join(RESIDUAL_BASE, name)),
  ...[INITIAL_ADAPTER, LESS_ADAPTER].flatMap((folder) =>
    kAdapterFiles.map((name) => join(folder, name)),
  ),
];

/** Paths, in the output folder, of what a run leaves in run/ besides the checkpoints, the configuration, the manifest and the lock. */
const kRecordFiles: readonly string[] = [
  RUN_FILES.metrics,
  RUN_FILES.evaluations,
  RUN_FILES.lastEvaluation,
  RUN_FILES.samples,
  RUN_FILES.environment,
  RUN_FILES.exported,
  RUN_FILES.result,
  RUN_FILES.best,
  kTeacherCacheName,
].map((name) => join(RUN, name));

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
  const lock = join(path, RUN, RUN_FILES.lock);
  const holder = await livingHolder(lock);
  if (holder !== null) throw inUse(path, lock, holder);
}

function inUse(path: string, lock: string, { pid, host }: LockHolder): ArgumentError {
  return new ArgumentError(
    `output folder ${path} is in use by process ${pid} on ${host}; wait for it, choose another folder, or ` +
      `remove ${lock} if there is no such process`,
  );
}

/**
 * Claims the folder for one run. Without `overwrite` or `resume` it must be absent or empty.
 * @throws ArgumentError if it holds anything else, is not a folder, or is in use by a living process.
 */
export async function claimOutput(path: string, options: ClaimOptions): Promise<OutputFolder> {
  await checkOutput(path, options);
  const run = join(path, RUN);
  const checkpoints = join(run, RUN_FILES.checkpoints);
  const lock = join(run, RUN_FILES.lock);
  let held: FolderLock | null = null;
  try {
    await makeFolder(run);
    held = await acquireLock(lock, (holder) => inUse(path, lock, holder));
    await requireUnchanged(path, options);
    if (options.overwrite) await removeEarlierRun(path);
    await makeFolder(checkpoints);
    const exported = kBeside.map((name) => join(path, name));
    const written = [path, run, checkpoints, join(run, RUN_FILES.best), ...exported];
    for (const folder of written) await removeTemporaries(folder);
    if (!(await namesIn(run)).includes(RUN_FILES.config)) await writeManifest(path);
  } catch (error) {
    await held?.release().catch(() => {});
    throw diskError(path, error);
  }
  const { isHeld, release } = held;
  return {
    path,
    run,
    config: join(run, RUN_FILES.config),
    checkpoints,
    check: async () => {
      if (await isHeld()) return;
      throw new NativeError(
        `output folder ${path} was removed or given to another process while the run was writing to it`,
        { code: 'ERR_IO', advice: 'begin anew in a folder that nothing else changes' },
      );
    },
    release,
  };
}

/**
 * Checks, now that this process has the lock, that no other one has written a result meanwhile, and that no export is writing one.
 * @throws ArgumentError if there is one
 */
async function requireUnchanged(path: string, { overwrite, resume }: ClaimOptions): Promise<void> {
  const place = join(path, OUTPUT_LOCK);
  const holder = await livingHolder(place);
  if (holder !== null) throw inUse(path, place, holder);
  if (overwrite || resume) return;
  const names = (await namesIn(path)).filter((name) => name !== RUN);
  if (names.length === 0 && !(await namesIn(join(path, RUN))).includes(RUN_FILES.config)) return;
  throw new ArgumentError(
    `output folder ${path} was filled by another process just now; choose another one`,
  );
}

/**
 * Removes everything that an earlier run wrote except the lock, which is now held by this process, and nothing else. Nothing is
 * removed from a folder without run/config.json, because it is not known to be a run's.
 */
async function removeEarlierRun(path: string): Promise<void> {
  const run = join(path, RUN);
  if (!(await namesIn(run)).includes(RUN_FILES.config)) return;
  for (const name of await readManifest(run)) await removeFile(join(path, name));
  for (const name of kBeside) await removeIfEmpty(join(path, name));
  const checkpoints = join(run, RUN_FILES.checkpoints);
  const own = [
    ...kRecordFiles.map((name) => join(path, name)),
    ...(await namesIn(checkpoints)).filter(isStepFolder).map((name) => join(checkpoints, name)),
    join(run, RUN_FILES.manifest),
    join(run, RUN_FILES.config), // removed last, so that an interrupted removal can be repeated
  ];
  for (const old of own) await removeAll(old);
}

async function removeIfEmpty(folder: string): Promise<void> {
  try {
    await rmdir(folder);
  } catch (error) {
    const { code = '' } = error as NodeJS.ErrnoException;
    if (!['ENOENT', 'ENOTEMPTY', 'EEXIST', 'ENOTDIR'].includes(code)) throw error;
  }
}

/** Writes which result files are this run's: those that are free, so that what is there is never taken for its own. */
async function writeManifest(path: string): Promise<void> {
  const isFree = await Promise.all(
    kResultFiles.map((name) =>
      stat(join(path, name)).then(
        () => false,
        () => true,
      ),
    ),
  );
  const own = kResultFiles.filter((_, i) => isFree[i]);
  const manifest = join(path, RUN, RUN_FILES.manifest);
  await writeFileAtomic(manifest, `${JSON.stringify(own, null, 2)}\n`);
}

/** The result files that a run may have written; without a manifest, which earlier versions did not write, all of them. */
async function readManifest(run: string): Promise<readonly string[]> {
  const text = await readText(join(run, RUN_FILES.manifest)).catch((error: unknown) => {
    if (isMissing(error)) return null;
    throw error;
  });
  if (text === null) return kResultFiles;
  let names: unknown = null;
  try {
    names = JSON.parse(text);
  } catch {}
  return kResultFiles.filter((name) => Array.isArray(names) && names.includes(name));
}
