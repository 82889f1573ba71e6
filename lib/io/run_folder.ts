/**
 * The layout of a run's output folder, for the code that writes it (lib/train) and the code that takes an adapter from it:
 *
 *     <output>/adapter_config.json, ...                            the result
 *     <output>/run/<RUN_FILES>                                     the record of the run
 *     <output>/run/checkpoints/step-<number>/<CHECKPOINT_FILES>    what the run continues from
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { namesIn } from './files.ts';
import { readText } from './regular_file.ts';

/** Name of the folder with the record of a run, in its output folder. */
export const RUN = 'run';

/** Names in run/. */
export const RUN_FILES = {
  metrics: 'metrics.jsonl',
  evaluations: 'evaluations.jsonl',
  lastEvaluation: 'last_evaluation.json',
  samples: 'samples.jsonl',
  environment: 'environment.jsonl',
  exported: 'export.json',
  result: 'result.json',
  config: 'config.json',
  manifest: 'manifest.json',
  best: 'best',
  checkpoints: 'checkpoints',
  lock: 'lock',
} as const;

/** Names in a checkpoint's folder, besides its checksums. */
export const CHECKPOINT_FILES = { state: 'state.json', tensors: 'state.safetensors' } as const;

/** The format of checkpoints that is written. Format 1 had no checksums. */
export const CHECKPOINT_FORMAT = 2;

/** Beginning of the names of the tuned model's tensors in a checkpoint. */
export const TUNED_PREFIX = 'tuned/';

const kStepFolder = /^step-(\d+)$/;

/** Name of the folder of a step, in checkpoints/ and best/. */
export const stepFolder = (step: number): string => `step-${step}`;

/** Whether a name is that of a step's folder. */
export const isStepFolder = (name: string): boolean => kStepFolder.test(name);

/** The folders of steps in a folder with their step numbers, the latest first. */
export async function listSteps(folder: string): Promise<{ name: string; step: number }[]> {
  return (await namesIn(folder))
    .flatMap((name) => {
      const match = kStepFolder.exec(name);
      return match === null ? [] : [{ name, step: Number(match[1]) }];
    })
    .sort((a, b) => b.step - a.step);
}

/** Whether a folder is a checkpoint of a run. */
export function isCheckpointFolder(folder: string): boolean {
  return existsSync(join(folder, CHECKPOINT_FILES.state));
}

/** The folder run/ of an output folder or of one of its checkpoints. */
export function recordOf(folder: string): string {
  return isCheckpointFolder(folder) ? join(folder, '..', '..') : join(folder, RUN);
}

/** A note of the parameters that the adapter or model in an output folder has. */
export interface ExportNote {
  /** The step that they are of: the best one, or the last. */
  readonly step: number;
  /** Number of steps that the run had done, and of those that it was to do. */
  readonly steps: number;
  readonly totalSteps: number;
}

/** How far the run in an output folder has come. */
export interface RunState {
  /** Number of steps that the run was to do when it was last started; null where that is not recorded. */
  readonly totalSteps: number | null;
  /** The step that its adapter or model is of; null where the run has written none. */
  readonly exported: ExportNote | null;
  /** Paths of its checkpoints, the latest first. */
  readonly checkpoints: readonly { readonly path: string; readonly step: number }[];
}

/** The state of the run in an output folder. It only informs, so a record that cannot be read counts as none. */
export async function runState(output: string): Promise<RunState> {
  const run = join(output, RUN);
  const checkpoints = join(run, RUN_FILES.checkpoints);
  const [start, exported, found] = await Promise.all([
    lastObject<{ totalSteps?: unknown }>(join(run, RUN_FILES.environment)),
    lastObject<ExportNote>(join(run, RUN_FILES.exported)),
    listSteps(checkpoints).catch(() => []),
  ]);
  const counts = [exported?.step, exported?.steps, exported?.totalSteps];
  return {
    totalSteps: typeof start?.totalSteps === 'number' ? start.totalSteps : null,
    exported: counts.every(Number.isInteger) ? exported : null,
    checkpoints: found.map(({ name, step }) => ({ path: join(checkpoints, name), step })),
  };
}

/** The last line of a file that is a JSON object; null without one. A last line that was cut off is passed over. */
async function lastObject<T extends object>(path: string): Promise<T | null> {
  const text = await readText(path).catch(() => '');
  return (
    text
      .split('\n')
      .map(objectIn<T>)
      .findLast((value) => value !== null) ?? null
  );
}

/** The JSON object that a line of a log holds; null for a line that was cut off, or that is no object. */
export function objectIn<T extends object>(line: string): T | null {
  try {
    const value: unknown = JSON.parse(line);
    return typeof value === 'object' && !Array.isArray(value) ? (value as T | null) : null;
  } catch {
    return null;
  }
}
