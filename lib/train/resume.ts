/** The checkpoint from which a run is resumed, and the check that it belongs to the same run. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import type { TunedModel } from '../adapters/tuned_model.ts';
import { ArgumentError, FormatError } from '../errors.ts';
import { TUNED_PREFIX } from '../io/run_folder.ts';
import type { Model } from '../models/index.ts';
import type { Optimizer } from '../optim/optimizer.ts';
import { shown } from '../shown.ts';
import { kTeacherCacheName } from '../tasks/teacher_cache.ts';
import type { Tensor } from '../tensor.ts';
import type { BestKeeper } from './best.ts';
import { type Checkpoint, latestCheckpoint } from './checkpoints.ts';
import { checkNewLength } from './extension.ts';
import { differences, type Identity } from './identity.ts';
import type { OutputFolder } from './output.ts';
import type { ResolvedRun } from './resolve_run.ts';
import type { AnyTrainerOptions } from './trainer_options.ts';
import type { RunPlan, Warning } from './types.ts';

const kPrefix = { tuned: TUNED_PREFIX, optimizer: 'optimizer/' } as const;

/** The run that is to be resumed, and the place for warnings about what is found. */
interface Resumed {
  readonly input: AnyTrainerOptions;
  readonly options: ResolvedRun;
  readonly plan: RunPlan;
  readonly identity: Identity;
  readonly keeper: BestKeeper | null;
  readonly warnings: Warning[];
}

/**
 * Opens the checkpoint to resume from, and the best step kept beside it; returns null, with a warning, if the earlier run did not
 * write one.
 */
export async function openCheckpoint(
  folder: OutputFolder,
  resumed: Resumed,
): Promise<Checkpoint | null> {
  const { warnings, keeper } = resumed;
  const { device } = resumed.input.tuned.model;
  const warn = (code: string, message: string): void => {
    warnings.push({ type: 'warning', code, message });
  };
  const checkpoint = await latestCheckpoint(folder.checkpoints, {
    device,
    onDamaged: (message) => warn('checkpoint_damaged', message),
  });
  if (checkpoint === null) {
    warn(
      'nothing_to_resume',
      `${folder.path} has no checkpoint, so the run starts from the beginning`,
    );
    return null;
  }
  try {
    checkSameRun(checkpoint, resumed);
    const problem = (await keeper?.resume()) ?? null;
    if (problem !== null) warn('best_damaged', problem);
    await checkLength(checkpoint, resumed, folder);
  } catch (error) {
    disposeAll(checkpoint.tensors);
    throw error;
  }
  return checkpoint;
}

/** The options that the number of steps is computed from, and another one whose meaning depends on that number. */
const kLengthOptions = ['maxSteps', 'numTrainEpochs'];
const kOfLength = 'warmupSteps';

/**
 * Checks that a checkpoint belongs to this run, whose number of steps may be another one.
 * @throws ArgumentError for a checkpoint of another run
 */
function checkSameRun({ state, path }: Checkpoint, { identity, plan }: Resumed): void {
  const free =
    state.totalSteps === plan.totalSteps ? kLengthOptions : [...kLengthOptions, kOfLength];
  const fixed = (whole: Identity): Identity =>
    Object.fromEntries(Object.entries(whole).filter(([key]) => !free.includes(key)));
  const changed = differences(fixed(state.identity), fixed(identity));
  if (changed.length > 0) {
    throw new ArgumentError(
      `${path} belongs to another run and cannot be continued bit for bit (${changed.join('; ')}); ` +
        'give the options of that run, or begin anew with overwrite: true',
    );
  }
}

/** Checks that the run may have the number of steps that is asked for. @throws ArgumentError if it may not */
async function checkLength(
  { state, path }: Checkpoint,
  { input, options, plan, keeper }: Resumed,
  folder: OutputFolder,
): Promise<void> {
  const { step, totalSteps } = state;
  if (totalSteps === plan.totalSteps) return;
  const used = Math.max(step, keeper?.best?.step ?? 0);
  const { [kOfLength]: warmupSteps } = state.identity;
  if (typeof warmupSteps !== 'number') {
    throw new FormatError(
      `${path}: identity.${kOfLength} must be a number, got ${shown(warmupSteps)}`,
      {
        path,
      },
    );
  }
  const from = { totalSteps, warmupSteps };
  await checkNewLength({ path, step, used, from, to: plan }, input, options);
  if (options.resources.cacheTeacher && !existsSync(join(folder.run, kTeacherCacheName))) {
    throw new ArgumentError(
      `${path} is of a run that has come to its end, and its cache of the teacher was removed then: one that is made now may differ ` +
        'by rounding (cacheTeacher), so the run cannot be continued bit for bit; train its adapter further in a new run',
    );
  }
}

function disposeAll(tensors: Readonly<Record<string, Tensor>>): void {
  for (const tensor of Object.values(tensors)) tensor.dispose();
}

/** The tensors that a checkpoint stores: the tuned parameters and the optimiser's moments. */
export function savedTensors(
  tuned: TunedModel<Model>,
  moments: Readonly<Record<string, Tensor>>,
): Record<string, Tensor> {
  return {
    ...withPrefix(kPrefix.tuned, tuned.state()),
    ...withPrefix(kPrefix.optimizer, moments),
  };
}

/** Restores the parameters and the optimiser from a checkpoint. */
export function restore(
  checkpoint: Checkpoint,
  input: AnyTrainerOptions,
  optimizer: Optimizer,
): void {
  const { path, state, tensors } = checkpoint;
  const values = withoutPrefix(kPrefix.tuned, tensors);
  input.tuned.restore(values, path);
  disposeAll(values);
  optimizer.restore(
    { tensors: withoutPrefix(kPrefix.optimizer, tensors), steps: state.optimizerSteps },
    path,
  );
}

function withPrefix<T>(prefix: string, values: Readonly<Record<string, T>>): Record<string, T> {
  return Object.fromEntries(Object.entries(values).map(([key, value]) => [prefix + key, value]));
}

function withoutPrefix<T>(prefix: string, values: Readonly<Record<string, T>>): Record<string, T> {
  return Object.fromEntries(
    Object.entries(values)
      .filter(([key]) => key.startsWith(prefix))
      .map(([key, value]) => [key.slice(prefix.length), value]),
  );
}
