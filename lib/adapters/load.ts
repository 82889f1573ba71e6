/** Adapters from folders. No adapter may be on in the model meanwhile. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { ArgumentError, FormatError, UnsupportedError } from '../errors.ts';
import type { Model } from '../models/index.ts';
import { type CallTable, checkArgument, checkCall, kCall, orNull } from '../options/call.ts';
import { DEFAULT_SEED } from '../options/option.ts';
import { synchronize } from '../runtime.ts';
import { oneLine, shown } from '../shown.ts';
import type { Tensor } from '../tensor.ts';
import { AdaptedLinear } from './adapted_linear.ts';
import { Adapter, type ResidualTeacher } from './adapter.ts';
import { type AdapterFolder, readAdapterFolder } from './adapter_folder.ts';
import { type BaseCheck, checkBase, residualForm, tensorsDigestIn } from './adapter_metadata.ts';
import { freezeBase, linearNamed, linearsOf, type NamedLinear, refuseHead } from './attach.ts';
import { checkSavedBase } from './checkpoint_folder.ts';
import { type LoraConfig, loraScale } from './config.ts';
import {
  type AdapterMethodName,
  COMMON_TABLE,
  type CreateOptions,
  DEFAULT_ADAPTER,
  settingsOf,
  sharedState,
} from './create.ts';
import { LoraModule } from './lora_module.ts';
import { type LowRankPair, PAIR_KEYS, pairIn } from './low_rank.ts';
import type { AdapterType } from './methods/method.ts';
import { keepsBase, startNamed, variantOf } from './methods/registry.ts';
import { checkShapes, fromFile, mastersOf, sharedContext, sharedOf } from './own_tensors.ts';
import { frozenCopy, ownBase, settleForm } from './pairs.ts';
import {
  ADAPTER_CONFIG,
  INITIAL_ADAPTER,
  type ModuleTensors,
  type PeftFolder,
  readPeftFolder,
  tensorsIn,
} from './peft_folder.ts';
import { codesDigest, firstPairsDigest } from './quantized_base.ts';
import { checkCodes } from './quantized_folder.ts';
import { CLASSIFIER_MODULES, isSaved, SavedModules } from './saved_modules.ts';
import { initialPairs, type PairTarget, startBatches } from './starts.ts';
import { isSelected, moduleSettings } from './targets.ts';

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

const kTable: CallTable<LoadOptions> = {
  ...COMMON_TABLE,
  method: orNull(kCall.text),
  ignoreKeys: kCall.texts,
  allowOtherBase: kCall.boolean,
};

const kNamesShown = 3;

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
  checkCall('AdapterModel', options, kTable);
  const { method = null } = options;
  if (method !== null) settingsOf(method, {});
  const read = await readAdapterFolder(folder, { ...options, device: model.device });
  const made: ReadOptions['made'] = [];
  try {
    return await adapterOf(model, read, { ...options, folder, made });
  } catch (error) {
    for (const each of made) each.dispose();
    throw error;
  } finally {
    disposeRead(read);
  }
}

/** Options of {@link adapterOf}. */
interface ReadOptions extends LoadOptions {
  readonly folder: string;
  /** Receives what the adapter will own, for the caller to dispose of after an error. */
  readonly made: Pick<Tensor, 'dispose'>[];
}

/** Makes the adapter that was read from a folder; the tensors that were read are the caller's. */
async function adapterOf(
  model: Model,
  read: AdapterFolder,
  {
    folder,
    made,
    seed = DEFAULT_SEED,
    name: adapterName = DEFAULT_ADAPTER,
    ...options
  }: ReadOptions,
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
  const { type } = variant;
  // Another start than a plain one is computed from whatever base there is, and a warning says so.
  const otherBase = await warningsOfBase(model, read, { folder, allowOtherBase, plain });
  const isPeft = checkpoint === undefined;
  const initial = plain && isPeft && !hasFirst ? await initialOf(folder, read, model.device) : null;
  if (initial !== null) made.push({ dispose: () => disposeRead(initial) });
  freezeBase(model);
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
    const r = type.pair === undefined ? named : (pairIn(loaded).a.shape[0] as number);
    return { name, linear, alpha, r, scale: loraScale(alpha, r, config), seed, loaded };
  });
  const tensors = sharedTensors(read, all, { type, seed });
  const shared = sharedState(config, seed, tensors);
  made.push(...shared.tensors.values());
  const modules: AdaptedLinear[] = [];
  const context = { variant, settings: { ...config }, path };
  for (const batch of startBatches(init, all)) {
    const values = batch.map(({ loaded, ...target }) => {
      const found = isPeft ? fromFile(target, loaded, context) : loaded;
      checkShapes(target, found, context);
      return found;
    });
    const starts = plain ? [] : initialPairs(init, batch);
    for (const [i, { loaded, ...target }] of batch.entries()) {
      const { name, linear } = target;
      const found = values[i] as ModuleTensors;
      const parameters = mastersOf(target, found, context);
      const first = initial?.modules.get(name);
      const teacher = frozenCopy(first && pairIn(first), linear);
      const frozen = frozenCopy(read.firstPairs?.get(name), linear) ?? pairOf(starts[i]);
      const less = frozenCopy(read.lessPairs?.get(name), linear) ?? starts[i]?.less ?? null;
      const quantized = frozen && ownBase(target, init, { first: frozen, less });
      // The first pairs of a folder may be the trained ones themselves.
      for (const tensor of [...loaded.values(), ...found.values()]) tensor.dispose();
      const parts = { ...target, parameters, frozen, teacher, quantized, variant };
      const module =
        type.pair === undefined ? new AdaptedLinear(parts, shared) : new LoraModule(parts, shared);
      modules.push(module);
      made.push(module);
      await settleForm(module);
    }
    await synchronize();
  }
  const missing = missingWarning(
    config,
    linears.filter(({ name }) => !found.has(name) && !isSaved(name, names)),
    path,
  );
  const warnings = [...missing, ...read.warnings, ...otherBase];
  if (!plain) warnings.unshift(residualWarning(config, folder));
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
  return new Adapter(adapterName, {
    config,
    modules,
    saved,
    shared,
    method,
    startDigest: null,
    calibration: null,
    quantizedDigest,
    residual,
    // Names in the folder's files are in some of them.
    warnings: warnings.map((text) => oneLine(text)),
  });
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
  for (const [name, tensors] of modules) {
    const first = initial.modules.get(name);
    const isSame = (key: string) =>
      first?.get(key)?.shape.join() === tensors.get(key)?.shape.join();
    if (Object.values(PAIR_KEYS).every(isSame)) continue;
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

function disposeRead(read: AdapterFolder): void {
  for (const tensor of tensorsIn(read)) tensor.dispose();
}

/** The tensors of a folder that all modules share, checked for the modules there, as copies. The read ones are freed. */
function sharedTensors(
  { config, shared = new Map<string, Tensor>(), path }: AdapterFolder,
  targets: readonly PairTarget[],
  { type, seed }: { type: AdapterType; seed: number },
): Map<string, Tensor> {
  const settings = { ...config };
  for (const { name, linear, r } of type.pair === undefined ? targets : []) {
    const { inFeatures, outFeatures } = linear;
    const complaint = type.refuses({ inFeatures, outFeatures, r }, settings);
    if (complaint !== null) throw new ArgumentError(`${name}: ${complaint}`);
  }
  const context = sharedContext(targets, settings, seed);
  const { linear } = targets[0] as PairTarget;
  const tensors = sharedOf(shared, { type, context, linear, path });
  for (const tensor of shared.values()) tensor.dispose();
  return tensors;
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
