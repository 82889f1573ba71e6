/** Creation of fresh adapters, and of adapters from folders. No adapter may be on in the model meanwhile. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { ArgumentError, FormatError, UnsupportedError } from '../errors.ts';
import type { Model } from '../models/index.ts';
import type { Linear } from '../nn/linear.ts';
import { matmul, mul, type PairForm, square, sum } from '../ops/index.ts';
import {
  type CallTable,
  checkArgument,
  checkCall,
  instanceOf,
  kCall,
  orNull,
  wholeNumber,
} from '../options/call.ts';
import { synchronize } from '../runtime.ts';
import { oneLine, shown } from '../shown.ts';
import { noGrad, scope, type Tensor } from '../tensor.ts';
import { Adapter, type ResidualTeacher } from './adapter.ts';
import { type AdapterFolder, readAdapterFolder } from './adapter_folder.ts';
import { type BaseCheck, checkBase, residualForm, tensorsDigestIn } from './adapter_metadata.ts';
import {
  checkShapes,
  freezeBase,
  linearNamed,
  linearNames,
  linearsOf,
  masterOf,
  type NamedLinear,
  refuseHead,
  trainablePair,
} from './attach.ts';
import { Calibration, checkCalibration } from './calibration.ts';
import { checkSavedBase } from './checkpoint_folder.ts';
import { type LoraConfig, type LoraConfigInput, loraConfig, loraScale } from './config.ts';
import { type AdapterState, LoraModule, type LoraParts } from './lora_module.ts';
import type { LowRankPair } from './low_rank.ts';
import type { OwnForm, Start } from './methods/method.ts';
import { presetSettings } from './methods/preset.ts';
import {
  keepsBase,
  type MethodName,
  scalingOf,
  startNamed,
  variantOf,
} from './methods/registry.ts';
import {
  checkOwnShapes,
  checkOwnTargets,
  fromFile,
  mastersOf,
  sharedContext,
  sharedOf,
  startOwn,
  startShared,
} from './own_tensors.ts';
import {
  ADAPTER_CONFIG,
  INITIAL_ADAPTER,
  type LoadedModule,
  type PeftFolder,
  readPeftFolder,
} from './peft_folder.ts';
import { peftStartSettings } from './peft_start_configs.ts';
import { codesDigest, firstPairsDigest, QuantizedBase } from './quantized_base.ts';
import { checkCodes } from './quantized_folder.ts';
import { CLASSIFIER_MODULES, isSaved, SavedModules } from './saved_modules.ts';
import {
  digestOf,
  initialPairs,
  type MadePair,
  type PairTarget,
  startBatches,
  startModule,
} from './starts.ts';
import { isSelected, moduleSettings, resolveTargets, shortestNames } from './targets.ts';

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

/** Options of {@link AdapterModel.fromPretrained}. */
export interface LoadOptions extends Omit<CreateOptions, 'calibration'> {
  /**
   * The method that training continues with, since a folder does not name it. See {@link AdapterConfigInput.method}; the folder's
   * own settings stay. Default: none.
   */
  method?: AdapterMethodName;
  /** Keys of adapter_config.json that the caller knows to be harmless although they are not understood. */
  ignoreKeys?: readonly string[];
  /** Whether a pair on a residual may be loaded onto another model than that residual. Default false. */
  allowOtherBase?: boolean;
}

/** The kinds of the options. */
const kCommonTable: CallTable<Omit<CreateOptions, 'calibration'>> = {
  seed: wholeNumber({ least: 0 }),
  name: kCall.name,
  onProgress: kCall.function,
};
const kCreateTable: CallTable<CreateOptions> = {
  ...kCommonTable,
  calibration: instanceOf(Calibration, 'a Calibration, which calibrate() makes'),
};
const kLoadTable: CallTable<LoadOptions> = {
  ...kCommonTable,
  method: orNull(kCall.text),
  ignoreKeys: kCall.texts,
  allowOtherBase: kCall.boolean,
};

export const DEFAULT_ADAPTER = 'default';
const kSeed = 42;
const kNamesShown = 3;

/** Creates a fresh adapter. @throws ArgumentError if targets or modules to save match nothing, or a rank exceeds a matrix */
export async function createAdapter(
  model: Model,
  input: AdapterConfigInput,
  options: CreateOptions,
): Promise<Adapter> {
  checkArgument('AdapterModel: the configuration', kCall.object, input);
  checkCall('AdapterModel', options, kCreateTable);
  const { seed = kSeed, name: adapterName = DEFAULT_ADAPTER, onProgress } = options;
  const { calibration = null } = options;
  const configured = adapterTargets(model, input, seed);
  const { method } = configured;
  const { initLoraWeights: init } = configured.config;
  freezeBase(model);
  const start = startNamed(init);
  const { targets: wanted } = configured;
  const startSettings = peftStartSettings(input, init);
  const request = { init, start, targets: wanted, settings: startSettings };
  await checkCalibration(model, request, calibration);
  const { config, targets } = calibrated(model, configured, { start, calibration });
  const saved = config.modulesToSave && new SavedModules(model, config.modulesToSave);
  const { own } = variantOf(config);
  const settings = { ...config };
  if (own !== undefined) checkOwnTargets(targets, { own, settings });
  const tensors = own && startShared(own, sharedContext(targets, settings, seed), targets);
  const shared = sharedState(config, seed, tensors);
  const modules: LoraModule[] = [];
  let startDigest: string | null = null;
  try {
    for (const batch of startBatches(init, targets)) {
      if (own !== undefined) {
        const parameters = startOwn(batch, { own, settings });
        for (const [i, target] of batch.entries()) {
          const module = { target, parameters: parameters[i] as Map<string, Tensor> };
          modules.push(ownModule(module, { config, shared }));
        }
      } else {
        const initial = initialPairs(init, batch);
        if (typeof init === 'function') startDigest = await digestOf(initial, batch);
        for (const [i, target] of batch.entries()) {
          const first = initial[i] as MadePair;
          modules.push(await freshModule(target, first, { config, shared }));
        }
      }
      await synchronize();
      onProgress?.(modules.length, targets.length);
    }
  } catch (error) {
    for (const module of modules) module.dispose();
    for (const tensor of shared.tensors.values()) tensor.dispose();
    saved?.dispose();
    throw error;
  }
  const origin = { startDigest, calibration: calibration?.identity ?? null };
  return new Adapter(adapterName, { config, modules, saved, shared, method, ...origin });
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
  seed = kSeed,
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
      ...(kept.length < known.length && {
        targetModules: shortestNames(names, linearNames(model)),
      }),
      rankPattern: others.map(({ name, r }) => [name, r] as const),
      alphaPattern: scaled.map(({ name, alpha }) => [name, alpha] as const),
    },
  };
}

/** A module without a pair A, B, which owns its tensors. */
function ownModule(
  {
    target: { name, linear, r, scale, alpha },
    parameters,
  }: { target: PairTarget; parameters: ReadonlyMap<string, Tensor> },
  { config, shared }: { config: LoraConfig; shared: AdapterState },
): LoraModule {
  const variant = variantOf(config);
  return new LoraModule(
    {
      ...{ name, linear, r, scale, alpha, variant, parameters },
      ...{ pair: null, frozen: null, form: variant.pairIsChange ? 'change' : 'exact' },
    },
    shared,
  );
}

/** Finds out whether the update of a module that was read from a file is a small change of its linear. */
async function checkIsChange(module: LoraModule): Promise<void> {
  if (module.form !== 'change' || module.variant.own?.loraObstacle(module.settings) !== null)
    return;
  const pair = module.variant.toLora(module);
  if (!(await isSmallSum(pair, module.linear, module.scale))) module.form = 'exact';
  for (const tensor of [pair.a, pair.b]) tensor.dispose();
}

/** The settings under a method's name, which must be that of a method with an adapter. @throws ArgumentError */
function settingsOf(method: MethodName | null, given: LoraConfigInput): LoraConfigInput {
  const settings = method === null ? given : presetSettings(method, given);
  if (settings !== null) return settings;
  throw new ArgumentError(
    'method full has no adapter; train every weight with new FullModel(model)',
  );
}

/** How a pair is computed: since its start, unless a base of its own does not contain that; else as a change where it is a small one. */
function formOf(
  { variant, frozen, quantized }: Pick<LoraParts, 'variant' | 'frozen' | 'quantized'>,
  isSmall: boolean,
): PairForm {
  if (frozen !== null) return quantized === null ? 'sinceStart' : 'exact';
  return variant.pairIsChange && isSmall ? 'change' : 'exact';
}

/** A module with its first pair; the module owns that pair where it is kept frozen, otherwise the pair is freed. */
async function freshModule(
  { name, linear, scale, alpha }: PairTarget,
  { fromWeight, less, ...first }: MadePair,
  { config, shared }: { config: LoraConfig; shared: AdapterState },
): Promise<LoraModule> {
  const variant = variantOf(config);
  const pair = trainablePair(first, linear);
  const frozen = fromWeight ? first : null;
  const quantized = ownBase({ name, linear, scale }, config.initLoraWeights, { first, less });
  if (frozen === null) for (const tensor of Object.values(first)) tensor.dispose();
  // A caller's function may return factors of any size; a listed start says whether its own are small by construction.
  const isSmall =
    (startNamed(config.initLoraWeights)?.isSmall ?? typeof config.initLoraWeights !== 'function') ||
    (await isSmallSum(pair, linear, scale));
  const form = formOf({ variant, frozen, quantized }, isSmall);
  const parts = { name, linear, pair, frozen, quantized, form, scale, alpha, variant };
  return new LoraModule(parts, shared);
}

/**
 * The base that a start makes for its adapter; null: it makes none.
 * @param pairs less: the pair of its own that the start takes off W, null where it has none
 */
function ownBase(
  module: Pick<PairTarget, 'name' | 'linear' | 'scale'>,
  init: unknown,
  { first, less }: { first: LowRankPair; less: LowRankPair | null },
): QuantizedBase | null {
  const taken = startNamed(init)?.quantizes?.(init as never);
  if (taken === undefined) return null;
  return new QuantizedBase({
    ...module,
    less: taken === 'first' ? first : less,
    ownsLess: taken === 'own',
  });
}

/**
 * Reads the adapter of a folder: a PEFT folder, or a checkpoint of a run. Ranks come from the tensors, and each tensor must belong
 * to a module.
 * @throws FormatError, UnsupportedError for a folder that cannot be understood whole; ArgumentError for a pair on a residual, if the
 *   model is not that residual
 */
export async function readAdapter(
  model: Model,
  folder: string,
  options: LoadOptions,
): Promise<Adapter> {
  checkArgument('AdapterModel: the folder', kCall.path, folder);
  checkCall('AdapterModel', options, kLoadTable);
  const { method = null } = options;
  if (method !== null) settingsOf(method, {});
  const read = await readAdapterFolder(folder, { ...options, device: model.device });
  const made: TensorOwner[] = [];
  try {
    return await adapterOf(model, read, { ...options, folder, made });
  } catch (error) {
    for (const each of made) each.dispose();
    throw error;
  } finally {
    disposeRead(read);
  }
}

/** An owner of tensors. */
interface TensorOwner {
  dispose(): void;
}

/** Options of {@link adapterOf}. */
interface ReadOptions extends LoadOptions {
  readonly folder: string;
  /** Receives what the adapter will own, for the caller to dispose of after an error. */
  readonly made: TensorOwner[];
}

/** Makes the adapter that was read from a folder; the tensors that were read are the caller's. */
async function adapterOf(
  model: Model,
  read: AdapterFolder,
  { folder, made, seed = kSeed, name: adapterName = DEFAULT_ADAPTER, ...options }: ReadOptions,
): Promise<Adapter> {
  const { method = null, allowOtherBase = false } = options;
  const { config, modules: found, saved: values, path, checkpoint } = read;
  const { initLoraWeights: init } = config;
  // First pairs that a checkpoint holds are not computed again.
  const hasFirst = read.firstPairs !== undefined;
  const plain = hasFirst || keepsBase(init);
  const start = startNamed(init);
  if (!plain && (start === null || start.calibration !== undefined)) {
    const maker = start === null ? 'that only PEFT makes' : 'that was computed from data';
    throw new UnsupportedError(
      `${folder}: the adapter was saved as init_lora_weights ${shown(init)}, so it belongs on a residual ${maker}; save it there ` +
        'as a plain LoRA (path_initial_model_for_weight_conversion)',
    );
  }
  const variant = variantOf(config);
  // Another start than a plain one is computed from whatever base there is, and a warning says so.
  const otherBase = await warningsOfBase(model, read, { folder, allowOtherBase, plain });
  const isPeft = checkpoint === undefined;
  const initial = plain && isPeft && !hasFirst ? await initialOf(folder, read, model.device) : null;
  if (initial !== null) made.push({ dispose: () => disposeRead(initial) });
  freezeBase(model);
  const { own } = variant;
  const names = config.modulesToSave ?? (values.size > 0 ? CLASSIFIER_MODULES : null);
  const saved = names && new SavedModules(model, names, { tensors: values, path });
  if (saved !== null) made.push(saved);
  for (const tensor of values.values()) tensor.dispose();
  const linears = linearsOf(model);
  const settings = moduleSettings(config);
  const all = Array.from(found, ([name, loaded]) => {
    const linear = linearNamed(linears, name, folder);
    refuseHead(model, name);
    const { alpha, r: named } = settings(name);
    const r = loaded.pair === null ? named : (loaded.pair.a.shape[0] as number);
    return { name, linear, alpha, r, scale: loraScale(alpha, r, config), seed, loaded };
  });
  const tensors = own && sharedTensors(read, all, { own, seed });
  const shared = sharedState(config, seed, tensors);
  made.push(...shared.tensors.values());
  const modules: LoraModule[] = [];
  for (const batch of startBatches(init, all)) {
    if (own !== undefined) {
      for (const { loaded, ...target } of batch) {
        const context = { own, settings: { ...config }, path };
        const values = isPeft ? fromFile(target, loaded.parameters, context) : loaded.parameters;
        checkOwnShapes(target, values, context);
        const parameters = mastersOf(target, values, context);
        for (const tensor of [...loaded.parameters.values(), ...values.values()]) tensor.dispose();
        const module = ownModule({ target, parameters }, { config, shared });
        modules.push(module);
        made.push(module);
        await checkIsChange(module);
      }
      await synchronize();
      continue;
    }
    const targets = batch.map(({ loaded, ...target }) => {
      const pair = loaded.pair as LowRankPair;
      const { name, linear } = target;
      checkShapes({ name, ...loaded, pair }, { linear, variant }, folder);
      return { ...target, loaded: { ...loaded, pair } };
    });
    const starts = plain ? [] : initialPairs(init, targets);
    for (const [i, { name, linear, scale, alpha, loaded }] of targets.entries()) {
      const pair = trainablePair(loaded.pair, linear);
      const teacher = initial === null ? null : teacherPair(initial, name, linear);
      const parameters = new Map(
        Array.from(loaded.parameters, ([key, value]) => [key, masterOf(value, linear)]),
      );
      for (const tensor of [loaded.pair.a, loaded.pair.b, ...loaded.parameters.values()]) {
        tensor.dispose();
      }
      const frozen = frozenPair(read.firstPairs, name, linear) ?? pairOf(starts[i]);
      const less = frozenPair(read.lessPairs, name, linear) ?? starts[i]?.less ?? null;
      const quantized =
        frozen === null ? null : ownBase({ name, linear, scale }, init, { first: frozen, less });
      const isSmall = frozen === null && (await isSmallSum(pair, linear, scale));
      const form = formOf({ variant, frozen, quantized }, isSmall);
      const own = { frozen, teacher, quantized, form };
      const parts = { name, linear, pair, ...own, scale, alpha, variant };
      const module = new LoraModule({ ...parts, parameters }, shared);
      modules.push(module);
      made.push(module);
    }
    await synchronize();
  }
  const missing = missingWarning(
    config,
    linears.filter(({ name }) => !found.has(name) && !isSaved(name, names)),
    path,
  );
  const warnings = [
    ...(plain ? [] : [residualWarning(config, folder)]),
    ...missing,
    ...read.warnings,
    ...otherBase,
  ];
  const residual = residualOf(read, initial);
  if (residual?.digest === null) {
    const why = isPeft
      ? `the folder ${INITIAL_ADAPTER} is missing`
      : 'a checkpoint does not hold the first pairs of an adapter on a residual';
    warnings.push(
      `${folder}: ${why}, without which the model before tuning is not known: there is no KL to it, and no consistency term`,
    );
  }
  if (initial !== null && initial !== read) disposeRead(initial);
  let quantizedDigest: number | null = null;
  if (modules.some(({ quantized }) => quantized !== null)) {
    const codes = await codesDigest(modules);
    const { quantizedDigest: digest = codes } = read;
    warnings.push(...checkCodes(codes, { folder, digest, allowOtherBase }));
    quantizedDigest = await firstPairsDigest(modules, codes);
  }
  const parts = {
    ...{ config, modules, saved, shared, method, quantizedDigest },
    // Names in the folder's files are in some of them.
    warnings: warnings.map((text) => oneLine(text)),
  };
  return new Adapter(adapterName, { ...parts, ...(residual !== null && { residual }) });
}

/** Warnings about the base, which an adapter whose start is computed from whatever base there is does not know. */
async function warningsOfBase(
  model: Model,
  { metadata, checkpoint }: AdapterFolder,
  { plain, ...check }: BaseCheck & { readonly plain: boolean },
): Promise<string[]> {
  if (checkpoint !== undefined) return checkSavedBase(model, checkpoint, check);
  return plain ? checkBase(model, metadata, check) : [];
}

/** A module's pair among those that a folder holds, as a frozen copy; null: it holds none. */
function frozenPair(
  pairs: ReadonlyMap<string, LowRankPair> | undefined,
  name: string,
  linear: Linear,
): LowRankPair | null {
  const found = pairs?.get(name);
  return found === undefined ? null : frozenCopy(found, linear);
}

function pairOf(start: LowRankPair | undefined): LowRankPair | null {
  return start === undefined ? null : { a: start.a, b: start.b };
}

/** The first values of a pair on a residual: in a folder beside it, or the pair itself; null where there are none. */
async function initialOf(
  folder: string,
  read: PeftFolder,
  device: string,
): Promise<PeftFolder | null> {
  const { modules, metadata } = read;
  if (residualForm(metadata) === 'initial') return read;
  const path = join(folder, INITIAL_ADAPTER);
  if (!existsSync(join(path, ADAPTER_CONFIG))) return null;
  const initial = await readPeftFolder(path, { device });
  for (const [name, { pair }] of modules) {
    const first = initial.modules.get(name)?.pair;
    if (
      first?.a.shape.join() === pair?.a.shape.join() &&
      first?.b.shape.join() === pair?.b.shape.join()
    ) {
      continue;
    }
    disposeRead(initial);
    throw new FormatError(`${path}: ${name} has no first pair of the shape of that in ${folder}`, {
      path,
    });
  }
  return initial;
}

/** The residual that an adapter belongs on; null: it belongs on the model before tuning. */
function residualOf(
  { config, metadata, checkpoint }: AdapterFolder,
  initial: PeftFolder | null,
): ResidualTeacher | null {
  if (checkpoint !== undefined) return checkpoint.onResidual ? { digest: null } : null;
  if (!keepsBase(config.initLoraWeights)) return null;
  if (initial !== null) return { digest: tensorsDigestIn(initial.metadata) ?? 'unknown' };
  return residualForm(metadata) === null ? null : { digest: null };
}

/** A frozen copy of a module's first pair, in the dtype of the trained one. */
function teacherPair({ modules }: PeftFolder, name: string, linear: Linear): LowRankPair {
  return frozenCopy((modules.get(name) as LoadedModule).pair as LowRankPair, linear);
}

function frozenCopy(given: LowRankPair, linear: Linear): LowRankPair {
  const pair = trainablePair(given, linear);
  for (const tensor of [pair.a, pair.b]) tensor.requiresGrad = false;
  return pair;
}

function disposeRead(read: AdapterFolder): void {
  for (const { pair, parameters } of read.modules.values()) {
    for (const tensor of [...Object.values(pair ?? {}), ...parameters.values()]) tensor.dispose();
  }
  for (const tensor of read.shared?.values() ?? []) tensor.dispose();
  for (const tensor of read.saved.values()) tensor.dispose();
  for (const pairs of [read.firstPairs, read.lessPairs]) {
    for (const { a, b } of pairs?.values() ?? []) for (const tensor of [a, b]) tensor.dispose();
  }
}

/** @param tensors those that all modules share, which the adapter owns from now on; default: none */
function sharedState(
  config: LoraConfig,
  seed: number,
  tensors: ReadonlyMap<string, Tensor> = new Map(),
): AdapterState {
  const { loraDropout: dropout } = config;
  const state = { enabled: false, teaches: false, pass: null, dropout, seed };
  return { ...state, settings: { ...config }, tensors, constants: new Map() };
}

/** The tensors of a folder that all modules share, checked for the modules there, as copies. The read ones are freed. */
function sharedTensors(
  { config, shared = new Map<string, Tensor>(), path }: AdapterFolder,
  targets: readonly PairTarget[],
  { own, seed }: { own: OwnForm; seed: number },
): Map<string, Tensor> {
  const settings = { ...config };
  checkOwnTargets(targets, { own, settings });
  const context = sharedContext(targets, settings, seed);
  const { linear } = targets[0] as PairTarget;
  const tensors = sharedOf(shared, { own, context, linear, path });
  for (const tensor of shared.values()) tensor.dispose();
  return tensors;
}

/** Ratio of the norm of B A to that of its r rank-one terms, below which these cancel; where they are independent it is 1. */
const kCancelled = 0.25;
/** Ratio of the norm of s B A to that of its base weight, above which it is more than a small change. */
const kSmall = 0.25;

/**
 * Whether s B A is small beside its base and not a difference of large terms. A folder does not name the pair's first values: a
 * pair exported from PiSSA either holds B A - B0 A0, which is small beside both terms, or belongs on a residual and holds the
 * largest part of the weight.
 */
async function isSmallSum(
  { a, b }: LowRankPair,
  { weight }: Linear,
  scale: number,
): Promise<boolean> {
  const norms = scope(() =>
    noGrad(() => [
      // |B A|^2 is the sum of (A A^T) * (B^T B), whose diagonal holds the squares of the terms.
      sum(mul(matmul(a, a, { transposeB: true }), matmul(b, b, { transposeA: true }))),
      sum(mul(sum(square(a), { axis: 1 }), sum(square(b), { axis: 0 }))),
      sum(square(weight.to(a.dtype))),
    ]),
  ) as [Tensor, Tensor, Tensor];
  const [product, apart, base] = (await Promise.all(norms.map((norm) => norm.item()))) as [
    number,
    number,
    number,
  ];
  for (const norm of norms) norm.dispose();
  return product >= kCancelled ** 2 * apart && scale ** 2 * product <= kSmall ** 2 * base;
}

/** The configuration with a classifier's head among the modules to save, listed as PEFT lists it. */
function withHead(model: Model, config: LoraConfig): LoraConfig {
  if (model.taskType !== 'SEQ_CLS') return config;
  const given =
    config.modulesToSave ?? model.headPaths.filter((path) => !CLASSIFIER_MODULES.includes(path));
  return { ...config, modulesToSave: [...given, ...CLASSIFIER_MODULES] };
}

function residualWarning(config: LoraConfig, folder: string): string {
  return (
    `${folder}: the adapter was saved as initLoraWeights ${shown(config.initLoraWeights)}, so it belongs on a residual ` +
    'that is computed again from this base, as PEFT does; export it as a plain LoRA to be independent of that'
  );
}

/**
 * A list of at most one warning that names the modules which a folder's configuration selects and its file lacks. PEFT warns about
 * them, too.
 */
function missingWarning(
  config: LoraConfig,
  without: readonly NamedLinear[],
  path: string,
): string[] {
  let missing: string[];
  try {
    missing = without.filter(isSelected(config)).map(({ name }) => name);
  } catch (error) {
    // The expression is valid in Python alone, so the names in the file decide which modules are adapted.
    return [`${path}: not known whether it lacks modules: ${(error as Error).message}`];
  }
  if (missing.length === 0) return [];
  const more = missing.length > kNamesShown ? ', ...' : '';
  return [
    `${path}: no tensors for ${missing.length} of the modules that target_modules selects ` +
      `(${missing.slice(0, kNamesShown).join(', ')}${more}): these stay as in the base`,
  ];
}
