/** A new adapter for the commands, with the calibration that its start needs. */
import { AdapterModel } from '../adapters/adapter_model.ts';
import type { Calibration } from '../adapters/calibration.ts';
import { loraConfig } from '../adapters/config.ts';
import type { AdapterConfigInput } from '../adapters/create.ts';
import { startNamed } from '../adapters/methods/registry.ts';
import { quantizationErrors } from '../adapters/quantized_base.ts';
import type { BatchSource } from '../data/batch_source.ts';
import { ArgumentError } from '../errors.ts';
import type { Model } from '../models/index.ts';
import { type CalibrateOptions, calibrate } from '../train/calibrate.ts';
import type { Progress } from './progress.ts';
import type { RunContext } from './tasks/cli_task.ts';
import type { TrainSettings } from './train_options.ts';

/** The origin of a new adapter's values. */
interface Origin extends RunContext {
  readonly data: BatchSource<unknown>;
  readonly settings: TrainSettings;
}

/** Creates an adapter. Where its start is computed from data, the training data are read for that first. */
export async function newAdapter<M extends Model>(
  model: M,
  config: AdapterConfigInput,
  origin: Origin,
): Promise<AdapterModel<M>> {
  const { settings, progress } = origin;
  const calibration = await calibrationFor(model, config, origin);
  try {
    const tuned = await AdapterModel.create(model, config, {
      ...{ seed: settings.seed, onProgress: progress.adapterProgress },
      ...(calibration !== null && { calibration }),
    });
    await tellErrors(tuned, progress);
    return tuned;
  } finally {
    calibration?.dispose();
  }
}

/** Says how far the model before tuning is from the unquantised one, where the start quantises it. */
async function tellErrors({ modules }: AdapterModel<Model>, progress: Progress): Promise<void> {
  const errors = await quantizationErrors(modules);
  if (errors === null) return;
  const [start, plain] = [errors.start, errors.plain].map(
    (error) => `${(100 * error).toFixed(2)}%`,
  );
  progress.message(
    `the adapted weights, quantised with their first pairs, are ${start} from the original ones (relative Frobenius norm); plain NF4 is ${plain} from them`,
  );
}

/** The calibration of a configuration's start; null: it reads no data. @throws ArgumentError for options that it has no use for */
async function calibrationFor(
  model: Model,
  { method: _, ...config }: AdapterConfigInput,
  { data, settings, progress, signal }: Origin,
): Promise<Calibration | null> {
  const { calibration: file, calibrationBatches: batches } = settings;
  const { calibrationData, calibrationSettings, seed } = settings;
  const { initLoraWeights } = loraConfig(config);
  if (startNamed(initLoraWeights)?.calibration === undefined) {
    const others = { calibrationData, calibrationSettings };
    const all = { calibration: file, calibrationBatches: batches, ...others };
    const given = Object.entries(all).find(([, value]) => value !== undefined)?.[0];
    if (given === undefined) return null;
    throw new ArgumentError(
      `${given} is for starts that are computed from data, and initLoraWeights ${String(initLoraWeights)} is not; leave it out`,
    );
  }
  const options: CalibrateOptions = {
    ...{ data, seed, signal, onProgress: progress.calibrationProgress },
    ...(file !== undefined && { file }),
    ...(batches !== undefined && { batches }),
    ...(calibrationSettings !== undefined && { settings: calibrationSettings }),
  };
  const calibration = await calibrate(model, config, options);
  if (calibration.facts.settings.quick === true) await tellEnergies(calibration, progress);
  return calibration;
}

/** Says how much of the gradients a start from sketches of them holds. */
async function tellEnergies(calibration: Calibration, progress: Progress): Promise<void> {
  const shares = Object.entries((await calibration.energies()) ?? {}).sort(([, a], [, b]) => a - b);
  const percent = (share: number): string => `${(100 * share).toFixed(1)}%`;
  const mean = shares.reduce((total, [, share]) => total + share, 0) / shares.length;
  const [name, least] = shares[0] as [string, number];
  progress.message(
    `the start holds ${percent(mean)} of the gradients' squared norm on average, ${percent(least)} of that of ${name}`,
  );
}
