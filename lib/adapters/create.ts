/** Creation of fresh adapters. No adapter may be on in the model meanwhile. */
import { ArgumentError } from '../errors.ts';
import type { Model } from '../models/index.ts';
import {
  type CallTable,
  checkArgument,
  checkCall,
  instanceOf,
  kCall,
  wholeNumber,
} from '../options/call.ts';
import { DEFAULT_SEED } from '../options/option.ts';
import { synchronize } from '../runtime.ts';
import type { Tensor } from '../tensor.ts';
import { AdaptedLinear, type AdapterState } from './adapted_linear.ts';
import { Adapter } from './adapter.ts';
import { freezeBase, linearNamed, linearNames, linearsOf, refuseHead } from './attach.ts';
import { Calibration, checkCalibration } from './calibration.ts';
import { type LoraConfig, type LoraConfigInput, loraConfig } from './config.ts';
import { LoraModule } from './lora_module.ts';
import type { Start } from './methods/method.ts';
import { presetSettings } from './methods/preset.ts';
import { type MethodName, scalingOf, startNamed, variantOf } from './methods/registry.ts';
import { sharedContext, startOwn, startShared } from './own_tensors.ts';
import { settleForm, startedPair } from './pairs.ts';
import { peftStartSettings } from './peft_start_configs.ts';
import { CLASSIFIER_MODULES, isSaved, SavedModules } from './saved_modules.ts';
import { digestOf, initialPairs, type PairTarget, startBatches, startModule } from './starts.ts';
import { resolveTargets, shortestNames } from './targets.ts';

/** Names of the methods that have an adapter. */
export type AdapterMethodName = Exclude<MethodName, 'full'>;

/** The configuration of a fresh adapter: a method's name, and the settings that override its preset. */
export interface AdapterConfigInput extends LoraConfigInput {
  /**
   * Name of a method ({@link METHODS}). Its adapter settings apply where none are given here, and a Trainer takes
   * its weight of each regularizer that the Trainer's own options do not set. Default: none, plain settings.
   */
  method?: AdapterMethodName;
}

/** Options of {@link AdapterModel.create}. */
export interface CreateOptions {
  /** Seed of the adapter's first values and its dropout (default 42). */
  seed?: number;
  /** Name by which {@link AdapterModel.setAdapter} finds it (default "default"). */
  name?: string;
  /** Called while the first values are made, which may take long (PiSSA's SVDs), with the adapted modules so far and in all. */
  onProgress?: (modules: number, total: number) => void;
  /** The calibration for a start that is computed from data (EVA, CorDA, LoRA-GA), made by {@link calibrate}. Default: none. */
  calibration?: Calibration;
}

/** The kinds of the options. */
export const COMMON_TABLE: CallTable<Omit<CreateOptions, 'calibration'>> = {
  seed: wholeNumber({ least: 0 }),
  name: kCall.name,
  onProgress: kCall.function,
};
const kCreateTable: CallTable<CreateOptions> = {
  ...COMMON_TABLE,
  calibration: instanceOf(Calibration, 'a Calibration, which calibrate() makes'),
};

export const DEFAULT_ADAPTER = 'default';

/** Creates a fresh adapter. @throws ArgumentError if targets or modules to save match nothing, or a rank exceeds a matrix */
export async function createAdapter(
  model: Model,
  input: AdapterConfigInput,
  options: CreateOptions,
): Promise<Adapter> {
  checkArgument('AdapterModel: the configuration', kCall.object, input);
  checkCall('AdapterModel', options, kCreateTable);
  const { seed = DEFAULT_SEED, name: adapterName = DEFAULT_ADAPTER, onProgress } = options;
  const { calibration = null } = options;
  const configured = adapterTargets(model, input, seed);
  const { initLoraWeights: init } = configured.config;
  freezeBase(model);
  const start = startNamed(init);
  const request = {
    init,
    start,
    targets: configured.targets,
    settings: peftStartSettings(input, init),
  };
  await checkCalibration(model, request, calibration);
  const { config, targets } = calibrated(model, configured, { start, calibration });
  const saved = config.modulesToSave && new SavedModules(model, config.modulesToSave);
  const variant = variantOf(config);
  const settings = { ...config };
  const context = sharedContext(targets, settings, seed);
  const shared = sharedState(config, seed, startShared(variant.type, context, targets));
  const modules: AdaptedLinear[] = [];
  // A caller's function may return factors of any size; a listed start says whether its own are small by construction.
  const isSmall = start?.isSmall ?? typeof init !== 'function';
  let startDigest: string | null = null;
  try {
    for (const batch of startBatches(init, targets)) {
      if (variant.type.pair === undefined) {
        for (const [i, parameters] of startOwn(batch, { variant, settings }).entries()) {
          const target = batch[i] as PairTarget;
          modules.push(new AdaptedLinear({ ...target, variant, parameters }, shared));
        }
      } else {
        const pairs = initialPairs(init, batch);
        if (typeof init === 'function') startDigest = await digestOf(pairs, batch);
        for (const [i, pair] of pairs.entries()) {
          const target = batch[i] as PairTarget;
          const started = startedPair(pair, target, init);
          modules.push(new LoraModule({ ...target, variant, ...started }, shared));
        }
      }
      if (!isSmall) for (const module of modules.slice(-batch.length)) await settleForm(module);
      await synchronize();
      onProgress?.(modules.length, targets.length);
    }
  } catch (error) {
    for (const module of modules) module.dispose();
    for (const tensor of shared.tensors.values()) tensor.dispose();
    saved?.dispose();
    throw error;
  }
  return new Adapter(adapterName, {
    config,
    modules,
    saved,
    shared,
    method: configured.method,
    startDigest,
    calibration: calibration?.identity ?? null,
    warnings: [],
    residual: null,
    quantizedDigest: null,
  });
}

/** The modules that an adapter is to be made for, with its configuration. */
export interface AdapterTargets {
  readonly method: AdapterMethodName | null;
  readonly config: LoraConfig;
  readonly targets: readonly PairTarget[];
}

/**
 * The modules that a configuration selects, in the order of the model.
 * @throws ArgumentError if targets match nothing, or a rank exceeds a matrix
 */
export function adapterTargets(
  model: Model,
  input: AdapterConfigInput,
  seed = DEFAULT_SEED,
): AdapterTargets {
  const { method = null, ...given } = input;
  const config = withHead(model, loraConfig(settingsOf(method, given)));
  const linears = linearsOf(model).filter(({ name }) => !isSaved(name, config.modulesToSave));
  const targets = resolveTargets(config, linears).map((target) => {
    refuseHead(model, target.name);
    return { ...target, seed, linear: linearNamed(linears, target.name, 'targetModules') };
  });
  return { method, config, targets };
}

/** The modules with what a calibration found for them, and with the ranks that the start distributes. */
function calibrated(
  model: Model,
  { config, targets }: AdapterTargets,
  { start, calibration }: { start: Start | null; calibration: Calibration | null },
): Pick<AdapterTargets, 'config' | 'targets'> {
  if (calibration === null) return { config, targets };
  const known = targets.map((target) => ({ ...target, calibrated: calibration.of(target.name) }));
  if (start?.ranks === undefined) return { config, targets: known };
  const ranks = start.ranks(known.map(startModule));
  const { divisor } = scalingOf(config);
  const kept = known.flatMap((target, i) => {
    const r = ranks[i] as number;
    return r === 0
      ? []
      : [{ ...target, r, alpha: (target.alpha * divisor(r)) / divisor(target.r) }];
  });
  const names = kept.map(({ name }) => name);
  const others = kept.filter(({ r }) => r !== config.r);
  const scaled = kept.filter(({ alpha }) => alpha !== config.loraAlpha);
  return {
    targets: kept,
    config: {
      ...config,
      targetModules:
        kept.length < known.length
          ? shortestNames(names, linearNames(model))
          : config.targetModules,
      rankPattern: others.map(({ name, r }) => [name, r] as const),
      alphaPattern: scaled.map(({ name, alpha }) => [name, alpha] as const),
    },
  };
}

/** The settings under a method's name, which must be that of a method with an adapter. @throws ArgumentError */
export function settingsOf(method: MethodName | null, given: LoraConfigInput): LoraConfigInput {
  const settings = method === null ? given : presetSettings(method, given);
  if (settings !== null) return settings;
  throw new ArgumentError(
    'method full has no adapter; train every weight with new FullModel(model)',
  );
}

/** The configuration with a classifier's head among the modules to save, listed as PEFT lists it. */
function withHead(model: Model, config: LoraConfig): LoraConfig {
  if (model.taskType !== 'SEQ_CLS') return config;
  const given =
    config.modulesToSave ?? model.headPaths.filter((path) => !CLASSIFIER_MODULES.includes(path));
  return { ...config, modulesToSave: [...given, ...CLASSIFIER_MODULES] };
}

/** @param tensors those that all modules share, which the adapter owns from now on */
export function sharedState(
  config: LoraConfig,
  seed: number,
  tensors: ReadonlyMap<string, Tensor>,
): AdapterState {
  return {
    enabled: false,
    teaches: false,
    pass: null,
    dropout: config.loraDropout,
    seed,
    settings: { ...config },
    tensors,
    constants: new Map(),
  };
}
