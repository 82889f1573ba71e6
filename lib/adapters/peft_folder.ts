/**
 * PEFT adapter folders, read and written: adapter_config.json and adapter_model.safetensors. Tensors are f32 for every dtype of the
 * base, under `base_model.model.<module>.lora_A.weight` and `.lora_B.weight`.
 */
import { join } from 'node:path';
import { FormatError, UnsupportedError } from '../errors.ts';
import { makeFolder, writeFileAtomic } from '../io/files.ts';
import { isMissing, kMaxConfigBytes, readText } from '../io/regular_file.ts';
import { loadSafetensors, SafetensorsFile, saveSafetensors } from '../io/safetensors.ts';
import { abs, max, sub } from '../ops/index.ts';
import { disposeOnError, noGrad, scope, type Tensor } from '../tensor.ts';
import {
  type AdapterBase,
  adapterMetadata,
  checkTensors,
  configWarning,
} from './adapter_metadata.ts';
import { formatAdapterConfig, type LoraConfig, parseAdapterConfig } from './config.ts';
import { copiesOf } from './copies.ts';
import { type LowRankPair, pairIn } from './low_rank.ts';
import { fileKeys, type Settings, tensorsOf, type Variant } from './methods/method.ts';
import { VARIANT_PARAMETERS, variantOf } from './methods/registry.ts';
import { CLASSIFIER_MODULES, isSaved } from './saved_modules.ts';
import { isAllLinear, moduleSettings, shortestNames, targetMatcher } from './targets.ts';
import type { NamedTensor } from './tuned_model.ts';

export const ADAPTER_CONFIG = 'adapter_config.json';
export const ADAPTER_TENSORS = 'adapter_model.safetensors';
/** Subfolders of the residual form: its base, and the pair as it was before training (PEFT's `pissa_init`). */
export const RESIDUAL_BASE = 'residual';
export const INITIAL_ADAPTER = 'initial';
/** Subfolder of an adapter with a base of its own: the pairs that this was quantised without, where they are not the first ones. */
export const LESS_ADAPTER = 'quantized';

const kPrefix = 'base_model.model.';
const kSharedPrefix = 'base_model.';

/** A key, with a pattern of one of its spellings after a module's path in files. */
interface KeySpelling {
  readonly key: string;
  readonly spelling: RegExp;
}

/** The keys that tensors of a module may have: those of its type, and those that other variants have beside a pair. */
function keysOf(config: LoraConfig): readonly KeySpelling[] {
  const keys = fileKeys(variantOf(config), { ...config }).map((key) => [key, key] as const);
  const beside = VARIANT_PARAMETERS.flatMap(({ key, alsoReadAs = [] }) =>
    [key, ...alsoReadAs].map((read) => [key, read] as const),
  );
  return [...keys, ...beside].map(([key, read]) => ({ key, spelling: spellingOf(read) }));
}

/** The pattern of a key's spellings: a state dict not saved by save_pretrained has the adapter's name after the parameter's. */
function spellingOf(key: string): RegExp {
  const [parameter, ...rest] = key.split('.') as [string, ...string[]];
  return new RegExp(`^(.+)\\.${[`${parameter}(?:\\.default)?`, ...rest].join('\\.')}$`);
}

/** The tensors of one module by their keys behind its path. */
export type ModuleTensors = ReadonlyMap<string, Tensor>;

/** The tensors and alpha of one module of an adapter that is written. */
export interface ExportedModule {
  readonly name: string;
  readonly r: number;
  readonly alpha: number;
  readonly tensors: ModuleTensors;
}

/** An adapter as its folder holds it. */
export interface PeftFolder {
  readonly config: LoraConfig;
  /** Modules by path, in the order of the file. */
  readonly modules: ReadonlyMap<string, ModuleTensors>;
  /** Tensors that all modules share, by their keys after `base_model.`; left out: none. */
  readonly shared?: ReadonlyMap<string, Tensor>;
  /** Parameters of modules that were saved whole, by path. */
  readonly saved: ReadonlyMap<string, Tensor>;
  /** The pairs that modules started from, where the folder has them, by the module's path; left out: none. */
  readonly firstPairs?: ReadonlyMap<string, LowRankPair>;
  /** The pairs that bases of the adapter's own were quantised without, where these are not the first ones; left out: none. */
  readonly lessPairs?: ReadonlyMap<string, LowRankPair>;
  /** Digest of the bases of the adapter's own; left out: it has none, or it is not known. */
  readonly quantizedDigest?: number;
  /** Path of the file with the tensors. */
  readonly path: string;
  /** Metadata of that file. */
  readonly metadata: Readonly<Record<string, string>>;
  /** Warnings for the user about the files. */
  readonly warnings: readonly string[];
}

/**
 * Reads a PEFT adapter folder.
 * @param options device: device of the tensors
 * @throws FormatError, UnsupportedError for a folder that cannot be understood whole
 */
export async function readPeftFolder(
  folder: string,
  { device, ...options }: { ignoreKeys?: readonly string[]; device?: string } = {},
): Promise<PeftFolder> {
  const configPath = join(folder, ADAPTER_CONFIG);
  const configText = await readConfig(configPath);
  const config = parseAdapterConfig(configText, { path: configPath, ...options });
  const path = join(folder, ADAPTER_TENSORS);
  const whole = [
    ...(config.modulesToSave ?? []),
    ...(config.taskType === 'SEQ_CLS' ? CLASSIFIER_MODULES : []),
  ];
  const { tensors, metadata } = await loadSafetensors(path, { checkFinite: true, device });
  return disposeOnError(Object.values(tensors), async () => {
    await checkTensors(tensors, metadata, path);
    const parts = partsOf(tensors, { config, whole, path });
    const changed = configWarning(JSON.parse(configText), metadata, configPath);
    return { config, ...parts, path, metadata, warnings: changed === null ? [] : [changed] };
  });
}

/** Assigns the tensors of a file to modules. @throws FormatError, UnsupportedError for tensors that make no adapter */
function partsOf(
  tensors: Readonly<Record<string, Tensor>>,
  { config, whole, path }: { config: LoraConfig; whole: readonly string[]; path: string },
): Required<Pick<PeftFolder, 'modules' | 'shared' | 'saved'>> {
  const found = new Map<string, Map<string, Tensor>>();
  const saved = new Map<string, Tensor>();
  const variant = variantOf(config);
  const keys = keysOf(config);
  const shared = new Map(
    variant.type.shared.flatMap(({ key }) => {
      const tensor = tensors[kSharedPrefix + key];
      return tensor === undefined ? [] : [[key, tensor] as const];
    }),
  );
  for (const [fullKey, tensor] of Object.entries(tensors)) {
    const key = modelKey(fullKey);
    if (shared.get(fullKey.slice(kSharedPrefix.length)) === tensor) continue;
    if (repeats(tensor, key, { shared, path })) {
      tensor.dispose();
      continue;
    }
    const parameter = adapterParameter(key, keys);
    const plain = savedKey(key);
    if (parameter !== null) {
      const { module } = parameter;
      found.set(module, (found.get(module) ?? new Map()).set(parameter.key, tensor));
    } else if (isSaved(plain.slice(0, plain.lastIndexOf('.')), whole)) saved.set(plain, tensor);
    else {
      throw new UnsupportedError(
        `${path}: the tensor "${fullKey}" is not supported yet; train an adapter of linear modules, or list the tensor's module in ` +
          'modules_to_save',
      );
    }
  }
  if (found.size === 0) {
    throw new FormatError(`${path}: holds no LoRA tensor`, {
      path,
      advice: 'give the folder of a LoRA adapter',
    });
  }
  const settings = { ...config };
  for (const [name, parts] of found) checkModule(name, parts, { variant, settings, path });
  return { modules: found, shared, saved };
}

/**
 * Whether a tensor of a module repeats one that all modules share, as PEFT writes them for RandLoRA.
 * @throws FormatError where it is another one
 */
function repeats(
  tensor: Tensor,
  name: string,
  { shared, path }: { shared: ReadonlyMap<string, Tensor>; path: string },
): boolean {
  const common = shared.get(name.slice(name.lastIndexOf('.') + 1));
  if (common === undefined) return false;
  const isSame =
    common.shape.join() === tensor.shape.join() &&
    scope(() => noGrad(() => max(abs(sub(common, tensor))).itemSync())) === 0;
  if (isSame) return true;
  throw new FormatError(
    `${path}: ${name} differs from the tensor of that name that all modules share`,
    { path, advice: 'save the adapter again' },
  );
}

/** The module that a tensor belongs to, and its key there; null: it belongs neither to a pair nor to a variant. */
function adapterParameter(
  name: string,
  keys: readonly KeySpelling[],
): { module: string; key: string } | null {
  for (const { key, spelling } of keys) {
    const module = spelling.exec(name)?.[1];
    if (module !== undefined) return { module, key };
  }
  return null;
}

const modelKey = (key: string): string =>
  key.startsWith(kPrefix) ? key.slice(kPrefix.length) : key;
const savedKey = (key: string): string => key.replace('.modules_to_save.default.', '.');

/** Reads adapter_config.json. @throws FormatError, UnsupportedError if it is missing or cannot be understood */
export async function readAdapterConfig(folder: string): Promise<LoraConfig> {
  const path = join(folder, ADAPTER_CONFIG);
  return parseAdapterConfig(await readConfig(path), { path });
}

/**
 * Shape of a parameter that a folder's adapter saves whole, by its path in the model; null: it saves no such parameter. Reads only
 * the file's header.
 */
export function savedShape(folder: string, name: string): readonly number[] | null {
  const file = SafetensorsFile.open(join(folder, ADAPTER_TENSORS));
  try {
    const found = [...file.tensors.values()].find((info) => savedKey(modelKey(info.name)) === name);
    return found?.shape ?? null;
  } finally {
    file.close();
  }
}

/** All tensors of an adapter that was read. */
export function* tensorsIn(read: PeftFolder): Generator<Tensor> {
  for (const tensors of read.modules.values()) yield* tensors.values();
  yield* read.shared?.values() ?? [];
  yield* read.saved.values();
  for (const pairs of [read.firstPairs, read.lessPairs]) {
    for (const { a, b } of pairs?.values() ?? []) yield* [a, b];
  }
}

/** The content of an adapter that is written. */
export interface ExportedParts {
  readonly modules: readonly ExportedModule[];
  /** Tensors that all modules share, by their keys; left out: none. */
  readonly shared?: ReadonlyMap<string, Tensor>;
  /** Parameters of modules that are saved whole. */
  readonly saved: readonly NamedTensor[];
  readonly base: Promise<AdapterBase>;
}

/** Writes the two files. Ranks and alphas that differ between modules become patterns of full names. */
export async function writePeftFolder(
  folder: string,
  config: LoraConfig,
  parts: ExportedParts,
  allLinears: readonly string[],
): Promise<void> {
  const { modules, shared = new Map<string, Tensor>(), saved, base } = parts;
  const tensors: Record<string, Tensor> = {};
  for (const [key, tensor] of shared) tensors[kSharedPrefix + key] = tensor;
  for (const { name, tensors: own } of modules) {
    for (const [key, tensor] of own) tensors[`${kPrefix}${name}.${key}`] = tensor;
  }
  for (const { name, tensor } of saved) tensors[kPrefix + name] = tensor;
  const text = formatAdapterConfig(configOf(config, modules, allLinears));
  // The digest and the file are made of copies, since the tensors may be trained meanwhile.
  const copies = copiesOf(tensors);
  try {
    await makeFolder(folder);
    const metadata = await adapterMetadata(copies, text, await base);
    await saveSafetensors(join(folder, ADAPTER_TENSORS), copies, metadata);
  } finally {
    for (const copy of Object.values(copies)) copy.dispose();
  }
  await writeFileAtomic(join(folder, ADAPTER_CONFIG), text);
}

/**
 * The configuration to write for these modules. PEFT sorts pattern keys on saving, which may change the meaning of patterns that
 * overlap: the caller's are kept where they mean the same when sorted, otherwise every module gets its full name.
 */
export function configOf(
  config: LoraConfig,
  modules: readonly ExportedModule[],
  allLinears: readonly string[],
): LoraConfig {
  const candidate = targetMatcher(config);
  const named = isAllLinear(config)
    ? {
        ...config,
        targetModules: shortestNames(
          modules.map(({ name }) => name),
          allLinears.filter((name) => candidate(name) && !isSaved(name, config.modulesToSave)),
        ),
      }
    : config;
  const sorted = {
    ...named,
    rankPattern: sortedPattern(config.rankPattern),
    alphaPattern: sortedPattern(config.alphaPattern),
  };
  const settings = moduleSettings(sorted);
  const same = modules.every(({ name, r: rank, alpha }) => {
    const { r, alpha: written } = settings(name);
    return r === rank && Math.abs(written - alpha) <= 1e-12 * Math.abs(alpha);
  });
  if (same) return sorted;
  // Patterns are regular expressions, so a dot matches anything; PEFT, too, writes paths as they are.
  const patternOf = <T>(value: (module: ExportedModule) => T, fallback: T) =>
    modules
      .filter((module) => value(module) !== fallback)
      .map((module) => [module.name, value(module)] as const);
  return {
    ...named,
    rankPattern: sortedPattern(patternOf(({ r }) => r, config.r)),
    alphaPattern: sortedPattern(patternOf(({ alpha }) => alpha, config.loraAlpha)),
  };
}

function sortedPattern(pattern: LoraConfig['rankPattern']): LoraConfig['rankPattern'] {
  return [...pattern].sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0));
}

/** Checks that a module's tensors are those of its variant. @throws FormatError if they are not */
export function checkModule(
  name: string,
  parts: ModuleTensors,
  { variant, settings, path }: { variant: Variant; settings: Settings; path: string },
): void {
  const keys = tensorsOf(variant, settings).map(({ key }) => key);
  const missing = fileKeys(variant, settings).find((key) => !parts.has(key));
  if (missing !== undefined) {
    throw new FormatError(`${path}: ${name} has no ${missing.replace(/\.weight$/, '')}`, { path });
  }
  const foreign = [...parts.keys()].find((key) => !keys.includes(key));
  if (foreign !== undefined) {
    throw new FormatError(
      `${path}: ${name} has a ${foreign}, which its ${ADAPTER_CONFIG} does not provide for`,
      { path, advice: `set the option that it belongs to (such as use_dora) in ${ADAPTER_CONFIG}` },
    );
  }
  if (variant.type.pair === undefined) return;
  const { a, b } = pairIn(parts);
  if (a.shape.length !== 2 || b.shape.length !== 2 || a.shape[0] !== b.shape[1]) {
    throw new FormatError(
      `${path}: ${name}: lora_A (r,in)=(${a.shape.join(',')}) and lora_B (out,r)=(${b.shape.join(',')}) do not fit`,
      { path },
    );
  }
}

async function readConfig(path: string): Promise<string> {
  try {
    return await readText(path, { limit: kMaxConfigBytes });
  } catch (error) {
    if (!isMissing(error)) throw error;
    throw new FormatError(`${path}: no such file`, {
      path,
      cause: error,
      advice: 'give the folder of a PEFT adapter',
    });
  }
}
