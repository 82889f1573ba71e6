/**
 * Checkpoints: run/checkpoints/step-<number>/{state.json, state.safetensors}. A folder gets this name only after all of its
 * files have been written to disk, so every folder with such a name is complete. If one has been damaged since, the one before
 * it is used.
 */
import { readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { BaloraError, FormatError, withoutAdvice } from '../errors.ts';
import { namesIn, writeFileAtomic, writeFolderAtomic } from '../io/files.ts';
import { loadSafetensors, saveSafetensors } from '../io/safetensors.ts';
import type { Tensor } from '../tensor.ts';
import type { Identity } from './options.ts';
import type { StepRecord } from './types.ts';
import type { Position } from './window.ts';

/** The content of a checkpoint other than its tensors. */
export interface CheckpointState {
  readonly format: 1;
  /** The number of completed optimiser steps. */
  readonly step: number;
  /** The total number of steps S. Schedules depend on it, so a resumed run must use the same number. */
  readonly totalSteps: number;
  /** The position of the next micro-batch. */
  readonly position: Position;
  readonly elapsedSeconds: number;
  readonly last: StepRecord | null;
  readonly identity: Identity;
  /** The number of steps that updated each parameter, by its name. */
  readonly optimizerSteps: Readonly<Record<string, number>>;
  /** Whether an evaluation was due at this step and may not have been completed; a resumed run then begins with it. */
  readonly owesEvaluation?: boolean;
}

export interface Checkpoint {
  readonly path: string;
  readonly state: CheckpointState;
  readonly tensors: Record<string, Tensor>;
}

const kFolderName = /^step-(\d+)$/;
const kStateFile = 'state.json';
const kTensorFile = 'state.safetensors';

/**
 * Writes a checkpoint, removes all but the latest `keep`, and returns its path. Checkpoints of later steps are not counted:
 * they were found to be damaged, and the run will write them again.
 */
export async function saveCheckpoint(
  folder: string,
  checkpoint: { state: CheckpointState; tensors: Readonly<Record<string, Tensor>> },
  keep: number,
): Promise<string> {
  const path = join(folder, `step-${checkpoint.state.step}`);
  await writeFolderAtomic(path, async (temporary) => {
    await saveSafetensors(join(temporary, kTensorFile), checkpoint.tensors);
    const text = `${JSON.stringify(checkpoint.state, null, 2)}\n`;
    await writeFileAtomic(join(temporary, kStateFile), text);
  });
  const { step } = checkpoint.state;
  const upToHere = (await listCheckpoints(folder)).filter((other) => other.step <= step);
  for (const { name } of upToHere.slice(keep)) {
    await rm(join(folder, name), { recursive: true, force: true });
  }
  return path;
}

/** The checkpoints in a folder with their step numbers, the latest first. */
export async function listCheckpoints(folder: string): Promise<{ name: string; step: number }[]> {
  return (await namesIn(folder))
    .flatMap((name) => {
      const match = kFolderName.exec(name);
      return match === null ? [] : [{ name, step: Number(match[1]) }];
    })
    .sort((a, b) => b.step - a.step);
}

/**
 * The latest checkpoint that can be read, or null if there is none.
 * @param options `device` receives the tensors; `onDamaged` is called for each damaged checkpoint that is skipped
 * @throws FormatError if there are checkpoints and all are damaged
 */
export async function latestCheckpoint(
  folder: string,
  { device, onDamaged }: { device: string; onDamaged: (message: string) => void },
): Promise<Checkpoint | null> {
  const names = await listCheckpoints(folder);
  const problems: string[] = [];
  for (const { name } of names) {
    const path = join(folder, name);
    try {
      return await readCheckpoint(path, device);
    } catch (error) {
      if (!(error instanceof BaloraError)) throw error;
      const problem = `${path} is damaged (${withoutAdvice(error)})`;
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

async function readCheckpoint(path: string, device: string): Promise<Checkpoint> {
  const statePath = join(path, kStateFile);
  let state: CheckpointState;
  try {
    state = JSON.parse(await readFile(statePath, 'utf8')) as CheckpointState;
  } catch (error) {
    throw new FormatError(`${statePath}: ${(error as Error).message}`, { path: statePath });
  }
  if (state.format !== 1) {
    const found = JSON.stringify(state.format);
    throw new FormatError(`${statePath}: format ${found} is not known`, { path: statePath });
  }
  const { tensors } = await loadSafetensors(join(path, kTensorFile), { device });
  return { path, state, tensors };
}
