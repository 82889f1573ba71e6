/**
 * Checkpoints: run/checkpoints/step-<number>/{state.json, state.safetensors}. A folder gets its name only when all of
 * it is on the disk, so any folder with that name is whole; one that was damaged later is passed over for the one
 * before it.
 */
import { readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { BaloraError, FormatError } from '../errors.ts';
import { namesIn, writeFileAtomic, writeFolderAtomic } from '../io/files.ts';
import { loadSafetensors, saveSafetensors } from '../io/safetensors.ts';
import type { Tensor } from '../tensor.ts';
import type { Identity } from './options.ts';
import type { StepRecord } from './types.ts';
import type { Position } from './window.ts';

/** What a checkpoint holds besides tensors. */
export interface CheckpointState {
  readonly format: 1;
  /** Optimiser steps done. */
  readonly step: number;
  /** S: schedules are fractions of it, so a resumed run must not count anew. */
  readonly totalSteps: number;
  /** The next micro-batch. */
  readonly position: Position;
  readonly elapsedSeconds: number;
  readonly last: StepRecord | null;
  readonly identity: Identity;
  /** Steps that moved each parameter, by its name. */
  readonly optimizerSteps: Readonly<Record<string, number>>;
  /** The evaluation at this step was due, or was stopped: a resumed run begins with it, a second time if it was finished. */
  readonly owesEvaluation?: boolean;
}

export interface Checkpoint {
  readonly path: string;
  readonly state: CheckpointState;
  readonly tensors: Record<string, Tensor>;
}

const kName = /^step-(\d+)$/;
const kState = 'state.json';
const kTensors = 'state.safetensors';

/**
 * Writes a checkpoint and removes the oldest ones beyond `keep`. Later ones do not count: they were passed over as damaged, and
 * the run comes to them again. Returns its path.
 */
export async function saveCheckpoint(
  folder: string,
  checkpoint: { state: CheckpointState; tensors: Readonly<Record<string, Tensor>> },
  keep: number,
): Promise<string> {
  const path = join(folder, `step-${checkpoint.state.step}`);
  await writeFolderAtomic(path, async (temporary) => {
    await saveSafetensors(join(temporary, kTensors), checkpoint.tensors);
    const text = `${JSON.stringify(checkpoint.state, null, 2)}\n`;
    await writeFileAtomic(join(temporary, kState), text);
  });
  const { step } = checkpoint.state;
  const upToHere = (await listCheckpoints(folder)).filter((other) => other.step <= step);
  for (const { name } of upToHere.slice(keep)) {
    await rm(join(folder, name), { recursive: true, force: true });
  }
  return path;
}

/** Step numbers of the checkpoints in a folder, the latest first. */
export async function listCheckpoints(folder: string): Promise<{ name: string; step: number }[]> {
  return (await namesIn(folder))
    .flatMap((name) => {
      const match = kName.exec(name);
      return match === null ? [] : [{ name, step: Number(match[1]) }];
    })
    .sort((a, b) => b.step - a.step);
}

/**
 * The latest checkpoint that can be read, or null if there is none.
 * @param options device: of its tensors; onDamaged: told about each one passed over
 * @throws FormatError if there are checkpoints and all are damaged
 */
export async function latestCheckpoint(
  folder: string,
  { device, onDamaged }: { device: string; onDamaged: (message: string) => void },
): Promise<Checkpoint | null> {
  const names = await listCheckpoints(folder);
  const complaints: string[] = [];
  for (const { name } of names) {
    const path = join(folder, name);
    try {
      return await readCheckpoint(path, device);
    } catch (error) {
      if (!(error instanceof BaloraError)) throw error;
      complaints.push(`${path} is damaged (${error.message})`);
      onDamaged(complaints[complaints.length - 1] as string);
    }
  }
  if (names.length > 0) throw new FormatError(complaints.join('; '), { path: folder });
  return null;
}

async function readCheckpoint(path: string, device: string): Promise<Checkpoint> {
  const statePath = join(path, kState);
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
  const { tensors } = await loadSafetensors(join(path, kTensors), { device });
  return { path, state, tensors };
}
