/**
 * The folders that an adapter is loaded from: a PEFT folder, which may be the output of a run, a checkpoint of a run, and a folder of
 * mlx-lm. Where the run has not come to its end, a message says of which step the adapter is, or which checkpoints there are.
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { FormatError } from '../errors.ts';
import { isCheckpointFolder, type RunState, runState } from '../io/run_folder.ts';
import { disposeOnError } from '../tensor.ts';
import {
  type CheckpointFolder,
  checkpointShape,
  readCheckpointFolder,
  readSavedRun,
} from './checkpoint_folder.ts';
import { isMlxFolder, readMlxFolder } from './mlx_folder.ts';
import {
  ADAPTER_CONFIG,
  type PeftFolder,
  readAdapterConfig,
  readPeftFolder,
  savedShape,
  tensorsIn,
} from './peft_folder.ts';
import { withoutQuantized } from './quantized_folder.ts';

/** An adapter that was read from a folder of either kind. */
export type AdapterFolder = CheckpointFolder | (PeftFolder & { readonly checkpoint?: undefined });

/**
 * Reads the adapter in a folder.
 * @param options device: device of the tensors
 * @throws FormatError, UnsupportedError for a folder that cannot be understood whole, or a run that has no adapter yet
 */
export async function readAdapterFolder(
  folder: string,
  options: { ignoreKeys?: readonly string[]; device?: string } = {},
): Promise<AdapterFolder> {
  if (isCheckpointFolder(folder)) {
    const read = await readCheckpointFolder(folder, options);
    return { ...read, warnings: [...read.warnings, ...checkpointWarnings(folder, read)] };
  }
  if (isMlxFolder(folder)) return readMlxFolder(folder, options);
  const state = await stateOf(folder);
  const plain = await readPeftFolder(folder, options);
  const read = await disposeOnError(tensorsIn(plain), () =>
    withoutQuantized(plain, folder, options.device),
  );
  return { ...read, warnings: [...read.warnings, ...runWarnings(folder, state)] };
}

/** PEFT's name for the task of a folder's adapter; null where the folder has none. */
export async function adapterTask(folder: string): Promise<string | null> {
  if (isCheckpointFolder(folder)) return (await readSavedRun(folder)).taskType;
  if (isMlxFolder(folder)) return 'CAUSAL_LM';
  await stateOf(folder);
  return (await readAdapterConfig(folder)).taskType;
}

/**
 * Shape of a parameter that a folder's adapter saves whole, by its path in the model; null: it saves no such parameter. Reads only
 * the file's header.
 */
export async function savedParameterShape(
  folder: string,
  name: string,
): Promise<readonly number[] | null> {
  if (isCheckpointFolder(folder)) return checkpointShape(folder, name);
  if (isMlxFolder(folder)) return null; // which has pairs alone
  await stateOf(folder);
  return savedShape(folder, name);
}

/** The state of the run in a folder. @throws FormatError for one that has written no adapter yet */
async function stateOf(folder: string): Promise<RunState> {
  const state = await runState(folder);
  const { totalSteps, checkpoints } = state;
  const hasAdapter = existsSync(join(folder, ADAPTER_CONFIG));
  if (hasAdapter || (totalSteps === null && checkpoints.length === 0)) return state;
  if (existsSync(join(folder, 'config.json'))) {
    throw new FormatError(
      `${folder}: its run trained every weight, so it is a model and no adapter`,
      {
        path: folder,
        advice: 'give it in the place of the model (--model), without an adapter',
      },
    );
  }
  const [last] = checkpoints;
  const of = totalSteps === null ? '' : ` of ${totalSteps}`;
  const reached = last === undefined ? 'has no checkpoint yet' : `is at step ${last.step}${of}`;
  const paths = checkpoints.map(({ path }) => path).join(', ');
  throw new FormatError(`${folder}: its run has not written an adapter yet, and ${reached}`, {
    path: folder,
    advice:
      last === undefined ? 'resume the run' : `resume the run, or give a checkpoint: ${paths}`,
  });
}

/** A warning where the adapter in an output folder is not that of the run's end. */
function runWarnings(folder: string, { totalSteps, exported, checkpoints }: RunState): string[] {
  if (totalSteps === null) return [];
  const [last] = checkpoints;
  const reached = last === undefined ? '' : `, whose last checkpoint is ${last.path}`;
  if (exported === null) {
    return [
      `${folder}: the run there, of ${totalSteps} steps, has not come to its end${reached}: the adapter beside it is not its result`,
    ];
  }
  if (exported.totalSteps >= totalSteps) return [];
  return [
    `${folder}: this is the adapter of step ${exported.step} of ${totalSteps} of an unfinished run${reached}`,
  ];
}

function checkpointWarnings(
  folder: string,
  { checkpoint: { step, totalSteps } }: CheckpointFolder,
): string[] {
  if (step === totalSteps) return [];
  return [`${folder}: this is the adapter of step ${step} of ${totalSteps} of a run`];
}
