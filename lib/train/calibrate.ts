/**
 * Calibration: passes of the untouched base over the first micro-batches of the user's data, from which data-driven starts (EVA, CorDA,
 * LoRA-GA) are computed. Padding is left out of everything. There are two machines: one reads the inputs of linear modules, once for
 * those that share an input, the other the gradients of their weights. Sums that do not fit into `maxBytes` together are made in
 * several passes, a part of the modules each, so that not all of them exist at once.
 */
import { existsSync } from 'node:fs';
import { delayed, orReason } from '../abort.ts';
import { checkNoAdapters, freezeBase } from '../adapters/attach.ts';
import { Calibration, type CalibrationFacts } from '../adapters/calibration.ts';
import { type AdapterConfigInput, adapterTargets } from '../adapters/create.ts';
import type { CalibrationSettings, StartCalibration } from '../adapters/methods/method.ts';
import { startNamed } from '../adapters/methods/registry.ts';
import { peftStartSettings } from '../adapters/peft_start_configs.ts';
import { startModule } from '../adapters/starts.ts';
import type { BatchSource } from '../data/batch_source.ts';
import { ArgumentError } from '../errors.ts';
import { baseDigest } from '../models/base_digest.ts';
import { useModel } from '../models/in_use.ts';
import type { Model } from '../models/index.ts';
import {
  type CallTable,
  checkCall,
  kCall,
  unknownOption,
  wholeNumber,
  withMethods,
} from '../options/call.ts';
import { DEFAULT_SEED } from '../options/option.ts';
import { shown } from '../shown.ts';
import type { Tensor } from '../tensor.ts';
import { byGradients } from './calibration_gradients.ts';
import { byInputs } from './calibration_inputs.ts';
import type { AnyBatch, Found, Pass } from './calibration_pass.ts';
import { CalibrationState } from './calibration_state.ts';

/** Options of {@link calibrate}. */
export interface CalibrateOptions {
  /** The data; those of the run, as a rule. The first micro-batches of epoch 0 are read. */
  data: BatchSource<unknown>;
  /**
   * Number of micro-batches (default 32, or all of an epoch if it has fewer). CorDA and LoRA-GA read each once for every pass, EVA goes
   * over them until its components stand still.
   */
  batches?: number;
  /**
   * Path of the file that keeps the result: read where it exists, and refused if it is another calibration; written otherwise. A calibration
   * that is cut off keeps what it has read beside it, in `file` + `.part`, and goes on from there: it is written every five minutes, and
   * when the calibration is stopped, unless the micro-batch that it reads takes a second longer. Default: none is kept.
   */
  file?: string;
  /** Largest size in bytes of the sums that are kept at a time (default 2^31); what does not fit takes further passes. */
  maxBytes?: number;
  /**
   * Settings of the start in the place of its defaults, by name: EVA's `rho` (2), `tau` (0.99) and `whiten` (false); LoRA-GA's `direction`
   * (`ArB2r`; `A2rBr`, `ArBr`, `random`), `scale` (`stable`; `weight_svd`, `gd_scale`, `unit`), `stableGamma` (16) and `quick` (false).
   * They come before those in the configuration's `evaConfig` and `loraGaConfig`. Default: none.
   */
  settings?: Readonly<Record<string, number | string | boolean>>;
  /** Seed of the searches for singular vectors (default 42). */
  seed?: number;
  /** Called with the work that is done and all of it: micro-batches of all passes, for EVA groups of modules that stand still. */
  onProgress?: (done: number, total: number) => void;
  /** Stops the calibration, whose promise is then rejected with the signal's reason. */
  signal?: AbortSignal;
}

const kTable: CallTable<CalibrateOptions> = {
  data: withMethods('a source of micro-batches', 'batches', 'batchCount'),
  batches: wholeNumber({ least: 1 }),
  file: kCall.path,
  maxBytes: wholeNumber({ least: 1 }),
  settings: kCall.object,
  seed: wholeNumber({ least: 0 }),
  onProgress: kCall.function,
  signal: kCall.signal,
};

const kBatches = 32;
const kMaxBytes = 2 ** 31;
/** Time in which a micro-batch may end after the calibration is stopped, so that what it has read is kept. */
const kEndMs = 1000;

/**
 * Computes what a data-driven start needs. The model has no adapter yet; its weights are frozen, as AdapterModel.create() does it.
 * @param config the adapter's configuration, whose `initLoraWeights` (or `method`) names the start
 * @example
 * const method = 'corda';
 * const calibration = await calibrate(model, { method, r: 16 }, { data });
 * const tuned = await AdapterModel.create(model, { method, r: 16 }, { calibration });
 * @returns the calibration, for the option `calibration` of AdapterModel.create(); the caller disposes of it after that
 * @throws ArgumentError for a start that reads no data, data without a supervised token, ranks that are too large for it, or a file with
 *   another calibration; FormatError for a file that is damaged; UnsupportedError for a kind of model that the start is not for
 */
export async function calibrate(
  model: Model,
  config: AdapterConfigInput,
  options: CalibrateOptions,
): Promise<Calibration> {
  checkNoAdapters(model);
  checkCall('calibrate', options, kTable);
  const {
    data,
    file,
    signal,
    seed = DEFAULT_SEED,
    maxBytes = kMaxBytes,
    onProgress = () => {},
  } = options;
  const { config: settings, targets } = adapterTargets(model, config, seed);
  const { initLoraWeights: init } = settings;
  const calibration = startNamed(init)?.calibration;
  if (calibration === undefined) {
    throw new ArgumentError(
      `calibrate: initLoraWeights ${shown(init)} is not computed from data; make the adapter without a calibration`,
    );
  }
  const available = await data.batchCount(0);
  if (available === 0) throw new ArgumentError('calibrate: the data has no micro-batch');
  const count = Math.min(options.batches ?? kBatches, available);
  const own = settingsOf(calibration, {
    ...peftStartSettings(config, init),
    ...options.settings,
  });
  const modules = targets.map((target) => {
    const calibrated = { inputOf: target.name, statistics: {}, settings: own };
    return { ...startModule({ ...target, calibrated }), linear: target.linear };
  });
  const ranks = modules.map(({ name, r }) => [name, { r, inputOf: name }] as const);
  const facts: CalibrationFacts = {
    ...{ start: String(init), base: await baseDigest(model), data: data.fingerprint },
    ...{ batches: count, modules: Object.fromEntries(ranks), settings: own },
  };
  const { device } = model;
  if (file !== undefined && existsSync(file)) return readAgain(file, facts, device);
  const release = useModel(model);
  const end = delayed(signal, kEndMs);
  const abort = end?.signal;
  try {
    freezeBase(model);
    const source = data as BatchSource<AnyBatch>;
    const state = await CalibrationState.open({ file, facts, maxBytes, seed, device, signal });
    signal?.throwIfAborted();
    const pass: Pass = {
      ...{ model, modules, count, settings: own, maxBytes, onProgress, state },
      ...{ batches: (start) => source.batches(0, start), abort },
    };
    const found = await orReason(abort, () =>
      calibration.reads === 'gradient'
        ? byGradients(pass, calibration)
        : byInputs(pass, calibration),
    );
    const result = resultOf(facts, found);
    if (file !== undefined) await result.save(file);
    await state.end();
    return result;
  } finally {
    end?.release();
    release();
  }
}

/** The settings of a start, those that are given in the place of the defaults. @throws ArgumentError for others than it has */
function settingsOf(
  { settings: defaults = {}, checkSettings }: StartCalibration,
  given: CalibrationSettings,
): CalibrationSettings {
  for (const [name, value] of Object.entries(given)) {
    if (!Object.hasOwn(defaults, name)) {
      throw unknownOption('calibrate: settings', name, Object.keys(defaults));
    }
    const wanted = typeof defaults[name];
    if (typeof value !== wanted || (wanted === 'number' && !Number.isFinite(value))) {
      const words = { number: 'a finite number', string: 'a text', boolean: 'true or false' };
      throw new ArgumentError(
        `calibrate: ${name} must be ${words[wanted as keyof typeof words]}, got ${shown(value)}`,
      );
    }
  }
  const settings = { ...defaults, ...given };
  checkSettings?.(settings);
  return settings;
}

/** The calibration of a file. @throws ArgumentError if it is another one than that which would be computed */
async function readAgain(
  file: string,
  facts: CalibrationFacts,
  device: string,
): Promise<Calibration> {
  const found = await Calibration.load(file, { device });
  const difference = found.difference(facts);
  if (difference === null) return found;
  found.dispose();
  throw new ArgumentError(
    `${file}: is a calibration that was made ${difference}; give another file, or remove it to calibrate again`,
  );
}

function resultOf(facts: CalibrationFacts, { statistics, inputOf }: Found): Calibration {
  const tensors: Record<string, Tensor> = {};
  for (const [module, own] of statistics) {
    for (const [name, value] of Object.entries(own))
      tensors[Calibration.keyOf(module, name)] = value;
  }
  const modules = Object.entries(facts.modules).map(
    ([name, { r }]) => [name, { r, inputOf: inputOf.get(name) ?? name }] as const,
  );
  return new Calibration({ ...facts, modules: Object.fromEntries(modules) }, tensors);
}
