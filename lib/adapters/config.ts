/**
 * The adapter's configuration in PEFT's vocabulary: from a user (camel or snake case), from an adapter_config.json of
 * any PEFT version, and back to the bytes that PEFT 0.21 writes.
 *
 * PEFT drops keys that it does not know. Here a key that may change the mathematics and is not understood is refused:
 * an adapter that loads and computes something else is worse than one that does not load.
 */
import { ArgumentError, FormatError, UnsupportedError } from '../errors.ts';
import { ConfigReader, type Raw } from './config_reader.ts';
import {
  type InitLoraWeights,
  METHOD_OPTION_NAMES,
  type MethodSwitches,
  scalingOf,
  selectedVariants,
  startNamed,
} from './methods/registry.ts';
import { compareCodePoints, PythonFloat, type PythonJson, pythonJson } from './python_json.ts';
import { INIT_CHOICES, type StartFunction } from './starts.ts';

export type { InitLoraWeights };

/**
 * An adapter's configuration as a user writes it; PEFT's snake case spelling of every key is accepted as well. The switches of
 * the methods (`useRslora`, `useDora`, ...) are declared in their files.
 */
export interface LoraConfigInput extends Partial<MethodSwitches> {
  /** Rank (default 8, as in PEFT). */
  r?: number;
  /** Scale of the update: alpha / r, unless a method scales otherwise (default 8). May be fractional. */
  loraAlpha?: number;
  /** Share of the pair's inputs that training drops (default 0). */
  loraDropout?: number;
  /** Trailing module names, one regular expression for the whole path, or "all-linear" (default). */
  targetModules?: readonly string[] | string;
  excludeModules?: readonly string[] | string | null;
  /** Regular expressions of module paths with their own rank or alpha; the first match in the order given counts. */
  rankPattern?: Readonly<Record<string, number>>;
  alphaPattern?: Readonly<Record<string, number>>;
  /** How A and B start: by name (docs/adapters.md), or a function that is given all modules (default true). */
  initLoraWeights?: InitLoraWeights | StartFunction;
  /** Trailing names of modules that are trained and kept whole, in the place of the base's. */
  modulesToSave?: readonly string[] | null;
  /** Block numbers to adapt, all if absent; `layersPattern` names the list that they count (default: any). */
  layersToTransform?: readonly number[] | number | null;
  layersPattern?: readonly string[] | string | null;
  taskType?: string | null;
  baseModelNameOrPath?: string | null;
  revision?: string | null;
}

/** A checked configuration, every field present. Patterns are lists: their order decides and objects do not keep it. */
export interface LoraConfig extends MethodSwitches {
  readonly r: number;
  readonly loraAlpha: number;
  readonly loraDropout: number;
  readonly targetModules: readonly string[] | string | null;
  readonly excludeModules: readonly string[] | string | null;
  readonly rankPattern: readonly (readonly [pattern: string, r: number])[];
  readonly alphaPattern: readonly (readonly [pattern: string, alpha: number])[];
  /** In the order given, PEFT's repetitions included. */
  readonly modulesToSave: readonly string[] | null;
  /** In a file also an initialisation that only PEFT knows, kept as text: the tensors are loaded over it. */
  readonly initLoraWeights: InitLoraWeights | StartFunction | (string & {});
  readonly layersToTransform: readonly number[] | null;
  readonly layersPattern: readonly string[] | string | null;
  readonly fanInFanOut: boolean;
  readonly inferenceMode: boolean;
  readonly taskType: string | null;
  readonly baseModelNameOrPath: string | null;
  readonly revision: string | null;
}

/** `targetModules` that means every linear module of the blocks. */
export const ALL_LINEAR = 'all-linear';

/** The PEFT release whose adapter_config.json is written. */
const kPeftVersion = '0.21.2';
const kDefaultRank = 8;

/** The methods' switches by their keys in PEFT's files. */
const kSwitches = new Map(METHOD_OPTION_NAMES.map((name) => [snakeCase(name), name]));

/** Keys that change nothing in what an adapter computes. */
const kIgnored = new Set([
  'peft_type',
  'peft_version',
  'auto_mapping',
  'megatron_core',
  'qalora_group_size',
  'runtime_config',
  'corda_config',
  'eva_config',
  'loftq_config',
  'lora_ga_config',
]);
/** Keys of PEFT that change the mathematics and have no implementation here, with the value that switches them off. */
const kUnsupported: Record<string, PythonJson> = {
  alora_invocation_tokens: null,
  arrow_config: null,
  bias: 'none',
  ensure_weight_tying: false,
  kasa_config: null,
  layer_replication: null,
  megatron_config: null,
  monteclora_config: null,
  target_parameters: null,
  trainable_token_indices: null,
  use_bdlora: null,
  use_qalora: false,
  velora_config: null,
};
const kUnderstood = new Set([
  'r',
  'lora_alpha',
  'lora_dropout',
  'target_modules',
  'exclude_modules',
  'rank_pattern',
  'alpha_pattern',
  'modules_to_save',
  'init_lora_weights',
  'layers_to_transform',
  'layers_pattern',
  'fan_in_fan_out',
  'inference_mode',
  'task_type',
  'base_model_name_or_path',
  'revision',
  ...kSwitches.keys(),
]);

/** Checks a user's configuration. @throws ArgumentError on an unknown key or a bad value, UnsupportedError. */
export function loraConfig(input: LoraConfigInput | Readonly<Raw> = {}): LoraConfig {
  const raw: Raw = {};
  for (const [key, value] of Object.entries(input)) {
    if (value === undefined) continue;
    const name = snakeCase(key);
    if (name in raw) throw new ArgumentError(`loraConfig: "${name}" is given in both spellings`);
    if (!kUnderstood.has(name) && !kIgnored.has(name) && !Object.hasOwn(kUnsupported, name)) {
      throw new ArgumentError(
        `loraConfig: unknown key "${key}", known: ${[...kUnderstood].sort().join(', ')}`,
      );
    }
    raw[name] = value;
  }
  refuseUnsupported(raw, 'loraConfig', new Set());
  const config = build({ target_modules: ALL_LINEAR, inference_mode: true, ...raw }, 'loraConfig');
  const { initLoraWeights: init } = config;
  if (typeof init !== 'function' && startNamed(init) === null) {
    throw new UnsupportedError(
      `loraConfig: initLoraWeights "${String(init)}" is not supported: ${INIT_CHOICES}`,
    );
  }
  return config;
}

export interface ReadConfigOptions {
  /** Name of the file for messages. */
  path?: string;
  /** Keys that the caller knows to be harmless although this library does not understand them. */
  ignoreKeys?: readonly string[];
}

/** Reads the text of an adapter_config.json, old and minimal ones included. @throws FormatError, UnsupportedError. */
export function parseAdapterConfig(text: string, options: ReadConfigOptions = {}): LoraConfig {
  const path = options.path ?? 'adapter_config.json';
  let raw: unknown;
  try {
    raw = JSON.parse(text);
  } catch (error) {
    throw new FormatError(`${path}: not JSON: ${(error as Error).message}`, { path });
  }
  if (typeof raw !== 'object' || raw === null || Array.isArray(raw)) {
    throw new FormatError(`${path}: must hold one JSON object`, { path });
  }
  const type = (raw as Raw).peft_type;
  if (type === undefined) throw new FormatError(`${path}: peft_type is missing`, { path });
  if (type !== 'LORA')
    throw new UnsupportedError(
      `${path}: peft_type ${JSON.stringify(type)} is not supported, only "LORA"`,
    );
  refuseUnsupported(raw as Raw, path, new Set(options.ignoreKeys));
  try {
    return build(raw as Raw, path);
  } catch (error) {
    if (error instanceof ArgumentError) throw new FormatError(error.message, { path });
    throw error;
  }
}

/** The text of adapter_config.json, byte for byte as PEFT 0.21 writes it (no newline at the end). */
export function formatAdapterConfig(config: LoraConfig): string {
  const list = (value: readonly string[] | string | null): PythonJson =>
    typeof value === 'string' || value === null ? value : [...value].sort(compareCodePoints);
  return pythonJson({
    ...kUnsupported,
    alpha_pattern: Object.fromEntries(config.alphaPattern),
    auto_mapping: null,
    base_model_name_or_path: config.baseModelNameOrPath,
    corda_config: null,
    eva_config: null,
    exclude_modules: list(config.excludeModules),
    fan_in_fan_out: config.fanInFanOut,
    inference_mode: config.inferenceMode,
    // PEFT has no name for a caller's own start, and needs none: the file holds what came of it.
    init_lora_weights: typeof config.initLoraWeights === 'function' ? true : config.initLoraWeights,
    layers_pattern: list(config.layersPattern),
    layers_to_transform: config.layersToTransform === null ? null : [...config.layersToTransform],
    loftq_config: {},
    lora_alpha: config.loraAlpha,
    lora_dropout: new PythonFloat(config.loraDropout),
    lora_ga_config: null,
    megatron_core: 'megatron.core',
    modules_to_save: config.modulesToSave === null ? null : [...config.modulesToSave],
    peft_type: 'LORA',
    peft_version: kPeftVersion,
    qalora_group_size: 16,
    r: config.r,
    rank_pattern: Object.fromEntries(config.rankPattern),
    revision: config.revision,
    target_modules: list(config.targetModules),
    task_type: config.taskType,
    ...Object.fromEntries(Array.from(kSwitches, ([key, name]) => [key, config[name]])),
  });
}

/** The scale s of an update: alpha / r, with rank-stabilised LoRA alpha / sqrt(r). */
export function loraScale(alpha: number, r: number, switches: MethodSwitches): number {
  return alpha / scalingOf(switches).divisor(r);
}

/** Switches that the identity of every run holds, on or off, in their order: those of the first version. */
const kFirstSwitches: readonly (keyof MethodSwitches)[] = ['useRslora', 'useDora', 'loraBias'];
const kLaterSwitches = METHOD_OPTION_NAMES.filter((name) => !kFirstSwitches.includes(name));

/**
 * The part of a run's identity that is the adapter's configuration. A switch that came later stands in it only where it is on,
 * so that checkpoints from before it fit; a start function is named by the digest of what it gave.
 */
export function configIdentity(
  config: LoraConfig,
  startDigest: string | null,
): Record<string, unknown> {
  const off = (key: string): boolean =>
    kLaterSwitches.some((name) => name === key && !config[name]);
  const entries = Object.entries(config)
    .filter(([key]) => key !== 'baseModelNameOrPath' && !off(key))
    .map(([key, value]) => [key, typeof value === 'function' ? `function ${startDigest}` : value]);
  return Object.fromEntries(entries);
}

function switchesOf(read: ConfigReader): MethodSwitches {
  const names = [...kFirstSwitches, ...kLaterSwitches];
  return Object.fromEntries(
    names.map((name) => [name, read.flag(snakeCase(name), false)]),
  ) as unknown as MethodSwitches;
}

/** `useDora` -> `use_dora`, PEFT's spelling. */
function snakeCase(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}

/** Off, whatever the key means: how PEFT writes a feature that is not used. */
function isNeutral(value: unknown): boolean {
  if (value === null || value === false) return true;
  return typeof value === 'object' && Object.keys(value as object).length === 0;
}

function refuseUnsupported(raw: Raw, where: string, ignored: ReadonlySet<string>): void {
  for (const [key, value] of Object.entries(raw)) {
    if (kUnderstood.has(key) || kIgnored.has(key) || ignored.has(key) || isNeutral(value)) continue;
    if (Object.hasOwn(kUnsupported, key)) {
      if (value === kUnsupported[key]) continue;
      throw new UnsupportedError(
        `${where}: ${key} = ${JSON.stringify(value)} is not supported yet`,
      );
    }
    throw new UnsupportedError(
      `${where}: the key "${key}" = ${JSON.stringify(value)} is not understood and may change the mathematics; ` +
        'name it in ignoreKeys if it does not',
    );
  }
}

/** From snake case keys to a checked configuration; PEFT's defaults fill what is absent. */
function build(raw: Raw, where: string): LoraConfig {
  const read = new ConfigReader(raw, where);
  const config: LoraConfig = Object.freeze({
    r: read.rank('r', raw.r ?? kDefaultRank),
    loraAlpha: read.number('lora_alpha', raw.lora_alpha ?? kDefaultRank),
    loraDropout: read.dropout(),
    targetModules: read.names('target_modules'),
    excludeModules: read.names('exclude_modules'),
    rankPattern: read.pattern('rank_pattern', (key, value) => read.rank(key, value)),
    alphaPattern: read.pattern('alpha_pattern', (key, value) => read.number(key, value)),
    ...switchesOf(read),
    modulesToSave: read.list('modules_to_save'),
    initLoraWeights: read.init(),
    layersToTransform: read.layers(),
    layersPattern: read.names('layers_pattern'),
    fanInFanOut: read.flag('fan_in_fan_out', false),
    inferenceMode: read.flag('inference_mode', false),
    taskType: read.text('task_type'),
    baseModelNameOrPath: read.text('base_model_name_or_path'),
    revision: read.text('revision'),
  });
  refuseCombinations(config, where);
  return config;
}

/** What cannot go together, as PEFT has it. @throws ArgumentError */
function refuseCombinations(config: LoraConfig, where: string): void {
  const refuse = (what: string): never => {
    throw new ArgumentError(`${where}: ${what}`);
  };
  const { initLoraWeights, targetModules, layersToTransform, layersPattern } = config;
  const variants = selectedVariants(config);
  const names = variants.map(({ option }) => snakeCase(option as string));
  if (names.length > 1) refuse(`${names[0]} cannot go with ${names[1]}`);
  for (const [i, variant] of variants.entries()) {
    const why = variant.refuses(initLoraWeights);
    if (why !== null) refuse(`${names[i]} ${why}`);
  }
  const regex = typeof targetModules === 'string' && targetModules !== ALL_LINEAR;
  if (regex && (layersToTransform !== null || layersPattern !== null)) {
    refuse(
      'layers_to_transform and layers_pattern need a list of target_modules: a regular expression can name layers itself',
    );
  }
  if (layersPattern !== null && layersPattern.length > 0 && layersToTransform === null) {
    refuse('layers_pattern needs layers_to_transform');
  }
}
