/** The checkpoint from which a run is resumed, and the check that it belongs to the same run. */
import type { TunedModel } from '../adapters/tuned_model.ts';
import { ArgumentError } from '../errors.ts';
import type { Model } from '../models/index.ts';
import type { Optimizer } from '../optim/optimizer.ts';
import type { Tensor } from '../tensor.ts';
import { type Checkpoint, latestCheckpoint } from './checkpoints.ts';
import { differences, type Identity } from './options.ts';
import type { OutputFolder } from './output.ts';
import type { AnyTrainerOptions } from './trainer_options.ts';
import type { RunPlan, Warning } from './types.ts';

const kPrefix = { tuned: 'tuned/', optimizer: 'optimizer/' } as const;

/** Opens the checkpoint to resume from; returns null, with a warning, if the earlier run did not write one. */
export async function openCheckpoint(
  folder: OutputFolder,
  found: { identity: Identity; plan: RunPlan; warnings: Warning[]; device: string },
): Promise<Checkpoint | null> {
  const { identity, plan, warnings, device } = found;
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
    checkSameRun(checkpoint, identity, plan);
  } catch (error) {
    disposeAll(checkpoint.tensors);
    throw error;
  }
  return checkpoint;
}

/**
 * Checks that a checkpoint belongs to this run.
 * @throws ArgumentError for a checkpoint of another run
 */
function checkSameRun({ state, path }: Checkpoint, identity: Identity, plan: RunPlan): void {
  const changed = differences(
    { ...state.identity, totalSteps: state.totalSteps },
    { ...identity, totalSteps: plan.totalSteps },
  );
  if (changed.length > 0) {
    throw new ArgumentError(
      `${path} belongs to another run and cannot be continued bit for bit (${changed.join('; ')}); ` +
        'give the options of that run, or begin anew with overwrite: true',
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
