/**
 * Checkpoints: run/checkpoints/step-<number>/{state.json, state.safetensors, SHA256SUMS}. A folder gets this name only after all
 * of its files have been written to disk, so every folder with such a name is complete. If one has been damaged since, which the
 * checksums show, the one before it is used.
 */
import { join } from 'node:path';
import { ArgumentError, BaloraError, FormatError } from '../errors.ts';
import { CHECKSUMS, CheckedFolder, writeChecksums } from '../io/checksums.ts';
import { diskError, namesIn, removeAll, writeFileAtomic, writeFolderAtomic } from '../io/files.ts';
import { readText } from '../io/regular_file.ts';
import { CHECKPOINT_FILES, listSteps, stepFolder } from '../io/run_folder.ts';
import { saveSafetensors } from '../io/safetensors.ts';
import type { Tensor } from '../tensor.ts';
import { type CheckpointState, parseState } from './checkpoint_state.ts';

export interface Checkpoint {
  readonly path: string;
  readonly state: CheckpointState;
  readonly tensors: Record<string, Tensor>;
}

const kFiles = Object.values(CHECKPOINT_FILES);

/**
 * Writes a checkpoint, removes all but the latest `keep`, and returns its path. Checkpoints of later steps are not counted:
 * they were found to be damaged, and the run will write them again.
 */
export async function saveCheckpoint(
  folder: string,
  checkpoint: { state: CheckpointState; tensors: Readonly<Record<string, Tensor>> },
  keep: number,
): Promise<string> {
  const path = join(folder, stepFolder(checkpoint.state.step));
  await writeFolderAtomic(path, async (temporary) => {
    await saveSafetensors(join(temporary, CHECKPOINT_FILES.tensors), checkpoint.tensors);
    const text = `${JSON.stringify(checkpoint.state, null, 2)}\n`;
    await writeFileAtomic(join(temporary, CHECKPOINT_FILES.state), text);
    await writeChecksums(temporary, kFiles);
  });
  const { step } = checkpoint.state;
  const upToHere = (await listSteps(folder)).filter((other) => other.step <= step);
  for (const { name } of upToHere.slice(keep)) {
    await removeAll(join(folder, name));
  }
  return path;
}

/**
 * The latest checkpoint that can be read, or null if there is none.
 * @param options `device` receives the tensors; `onDamaged` is called for each damaged checkpoint that is skipped
 * @throws FormatError if there are checkpoints and all are damaged; ArgumentError for one of an earlier version
 */
export async function latestCheckpoint(
  folder: string,
  { device, onDamaged }: { device: string; onDamaged: (message: string) => void },
): Promise<Checkpoint | null> {
  const names = await listSteps(folder);
  const problems: string[] = [];
  for (const { name, step } of names) {
    const path = join(folder, name);
    try {
      return await readCheckpoint(path, { step, device });
    } catch (error) {
      if (!isDamage(error)) throw error;
      const problem = `${path} is damaged (${error.fact})`;
      problems.push(problem);
      onDamaged(problem);
    }
  }
  if (names.length > 0) {
    const advice = 'begin anew with overwrite: true, or put a copy of a checkpoint into the folder';
    throw new FormatError(problems.join('; '), { path: folder, advice });
  }
  return null;
}

/** Whether a checkpoint could not be read because of its files. A lack of memory, for example, says nothing about them. */
function isDamage(error: unknown): error is BaloraError {
  return (
    error instanceof BaloraError &&
    ['ERR_FORMAT', 'ERR_IO', 'ERR_FILE_CHANGED'].includes(error.code)
  );
}

async function readCheckpoint(
  path: string,
  { step, device }: { step: number; device: string },
): Promise<Checkpoint> {
  const statePath = join(path, CHECKPOINT_FILES.state);
  await refuseOldFormat(path);
  const checked = await CheckedFolder.open(path);
  const state = parseState(await checked.text(CHECKPOINT_FILES.state), statePath);
  if (state.step !== step) {
    throw new FormatError(`${statePath}: is the state of step ${state.step}`, { path: statePath });
  }
  const tensors = await checked.tensors(CHECKPOINT_FILES.tensors, { device });
  return { path, state, tensors };
}

/** Refuses a checkpoint without checksums that an earlier version wrote. @throws ArgumentError */
async function refuseOldFormat(path: string): Promise<void> {
  const names = await namesIn(path).catch((error: unknown) => {
    throw diskError(path, error, 'read');
  });
  if (names.includes(CHECKSUMS)) return;
  const text = await readText(join(path, CHECKPOINT_FILES.state)).catch(() => '');
  if (!/^\s*\{\s*"format":\s*1\b/.test(text)) return;
  throw new ArgumentError(
    `${path} was written by an earlier version of balora, whose checkpoints have no checksums, so it cannot be continued; ` +
      'finish the run with that version, or begin anew in another folder, or with overwrite: true',
  );
}
