/**
 * The adapter's configuration in PEFT's vocabulary: from a user (camel or snake case), from an adapter_config.json of
 * any PEFT version, and back to the bytes that PEFT 0.21 writes.
 *
 * PEFT drops keys that it does not know. Here a key that may change the mathematics and is not understood is refused:
 * an adapter that loads and computes something else is worse than one that does not load.
 */
import { ArgumentError, FormatError, UnsupportedError } from '../errors.ts';
import { unknownOption } from '../options/call.ts';
import {
  camel,
  checkTogether,
  checkValue,
  complaint,
  defaultOf,
  defaultsOf,
  type InputOf,
  identityOfTable,
  normalized,
  type Option,
  type OptionTable,
  type ResolvedOf,
  snake,
} from '../options/option.ts';
import { shown } from '../shown.ts';
import {
  type AdapterValues,
  ALL_LINEAR,
  type LoraInputOptions,
  loraChecks,
  loraOptions,
  PEFT_SWITCHES,
  type PeftForm,
  withoutOthers,
} from './lora_options.ts';
import type { AdapterType, ConfigKey } from './methods/method.ts';
import {
  type InitLoraWeights,
  type MethodSwitches,
  PEFT_TYPES,
  scalingOf,
  startNamed,
  TYPE_OPTIONS,
  typeNamed,
  typeOf,
} from './methods/registry.ts';
import { IDLE_KEYS, UNSUPPORTED_KEYS } from './peft_keys.ts';
import { peftStart, startWithCordaMethod, startWithLoftqConfig } from './peft_start_configs.ts';
import { type PythonJson, pythonJson } from './python_json.ts';

export { ALL_LINEAR, type InitLoraWeights };

/**
 * An adapter's configuration as a user writes it; PEFT's snake case spelling of every key is accepted as well. The switches of
 * the methods (`useRslora`, `useDora`, ...) are declared in their files.
 */
export interface LoraConfigInput extends InputOf<LoraInputOptions> {
  /** PEFT's CordaConfig, of which `cordaMethod` counts: with the start `corda`, `ipm` (default) or `kpm`, which is `corda_kpm`. */
  cordaConfig?: Readonly<Record<string, unknown>> | null;
  /** PEFT's EvaConfig: settings of the calibration for the start `eva` (see `CalibrateOptions.settings`). */
  evaConfig?: Readonly<Record<string, unknown>> | null;
  /** PEFT's LoftQConfig: with the start `loftq`, `loftqIter` (1) is the number of times that it quantises; `loftqBits` must be 4. */
  loftqConfig?: Readonly<Record<string, unknown>> | null;
  /** PEFT's LoraGAConfig: settings of the calibration for the starts `lora_ga` and `lora_ga_peft`. */
  loraGaConfig?: Readonly<Record<string, unknown>> | null;
}

/**
 * A checked configuration: the common options, and those of the methods of its `peftType`. Patterns are lists: their order decides and
 * objects do not keep it.
 */
export interface LoraConfig extends AdapterValues {}

/** An unchecked configuration with keys in snake case. */
type Raw = Record<string, unknown>;

/** The PEFT release whose adapter_config.json is written. */
export const PEFT_VERSION = '0.21.2';

/** The options by their keys in adapter_config.json. */
const kByKey = new Map(
  Object.entries(loraOptions as Readonly<Record<string, Option & PeftForm>>).map(
    ([name, option]) => [snake(name), { name, option }],
  ),
);

/** The name in {@link kByKey} of the option that no file has under its own name. */
const kKept = 'kept_keys';

/** Keys that change nothing in what an adapter computes. */
const kIgnored = new Set([
  ...['peft_version', 'auto_mapping', 'runtime_config'],
  ...Object.keys(IDLE_KEYS),
]);

/** Checks a user's configuration. @throws ArgumentError on an unknown key or a bad value, UnsupportedError. */
export function loraConfig(input: LoraConfigInput | Readonly<Raw> = {}): LoraConfig {
  const raw: Raw = Object.create(null);
  const spelling = new Map<string, string>();
  for (const [key, value] of Object.entries(input)) {
    if (value === undefined) continue;
    const name = snake(key);
    if (Object.hasOwn(raw, name))
      throw new ArgumentError(`loraConfig: "${name}" is given in both spellings; leave one out`);
    if (!kByKey.has(name) && !kIgnored.has(name) && !Object.hasOwn(UNSUPPORTED_KEYS, name)) {
      throw unknownOption('loraConfig', key, loraOptions);
    }
    raw[name] = value;
    spelling.set(name, key);
  }
  refuseUnsupported(raw);
  if (raw.init_lora_weights !== undefined) raw.init_lora_weights = startOf(raw);
  const { init_lora_weights: init } = raw;
  if (typeof init === 'string' && init !== 'lora' && startNamed(init) === null) {
    const name = spelling.get('init_lora_weights');
    throw new UnsupportedError(
      `loraConfig: ${name} ${complaint(loraOptions.initLoraWeights, init)}`,
    );
  }
  const config = build(raw, {
    where: 'loraConfig',
    inFile: false,
    nameOf: (key) => spelling.get(key),
  });
  checkKept(config);
  return config;
}

/** Refuses kept keys that would not be written again. @throws ArgumentError */
function checkKept({ peftType, keptKeys: kept }: LoraConfig): void {
  const idle = idleKeys(typeOf({ peftType }));
  for (const [key, value] of Object.entries(kept ?? {})) {
    if (!Object.hasOwn(idle, key)) {
      throw new ArgumentError(
        `loraConfig: keptKeys has ${shown(key, 40)}, which is no idle key of adapter_config.json for ${peftType}; leave it out, known: ` +
          Object.keys(idle).join(', '),
      );
    }
    try {
      pythonJson(value);
    } catch {
      throw new ArgumentError(
        `loraConfig: keptKeys.${key} must be a value of JSON with exact numbers, got ${shown(value)}; leave it out`,
      );
    }
  }
}

export interface ReadConfigOptions {
  /** Name of the file, for messages. */
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
  const name = (raw as Raw).peft_type;
  if (name === undefined) {
    throw new FormatError(`${path}: peft_type is missing`, {
      path,
      advice: 'add "peft_type": "LORA" if the folder holds a LoRA adapter',
    });
  }
  const type = typeNamed(name);
  if (type === null)
    throw new UnsupportedError(
      `${path}: peft_type ${shown(name)} is not supported; give the folder of an adapter with one of ${PEFT_TYPES.join(', ')}`,
    );
  const ignored = new Set(options.ignoreKeys);
  const values = valuesOf(raw as Raw, type, { path, ignored });
  const kept = keptKeys(raw as Raw, type, { path, ignored });
  try {
    const start = startOf({ ...(raw as Raw), init_lora_weights: values.init_lora_weights });
    const started = start === undefined ? {} : { init_lora_weights: start };
    const read = { ...values, ...started, [kKept]: kept };
    const nameOf = (key: string): string => fileKey(key, type);
    return build(read, { where: path, inFile: true, nameOf });
  } catch (error) {
    if (error instanceof ArgumentError) throw new FormatError(error.message, { path });
    throw error;
  }
}

/** The key of an option as the files of a type have it. */
function fileKey(key: string, { keys }: AdapterType): string {
  const found = Object.entries(keys).find(
    ([, known]) => 'option' in known && snake(known.option) === key,
  );
  return found?.[0] ?? key;
}

/** The idle keys that a type's files have, with the values that are written where none were read. */
function idleKeys({ keys }: AdapterType): Readonly<Record<string, PythonJson>> {
  const particular = Object.entries(keys).flatMap(([key, known]) =>
    'idle' in known ? [[key, known.idle] as const] : [],
  );
  return { auto_mapping: null, ...Object.fromEntries(particular) };
}

/** The idle keys of a file with the values that would not be written otherwise; null: none. @throws FormatError for a number too large */
function keptKeys(
  raw: Raw,
  type: AdapterType,
  { path, ignored }: { path: string; ignored: ReadonlySet<string> },
): LoraConfig['keptKeys'] {
  const kept = Object.entries(idleKeys(type)).flatMap(([key, usual]) => {
    if (!Object.hasOwn(raw, key) || ignored.has(key)) return [];
    const value = raw[key] as PythonJson;
    if (JSON.stringify(value) === JSON.stringify(usual)) return [];
    try {
      pythonJson(value);
    } catch {
      throw new FormatError(
        `${path}: ${key} = ${shown(value)} has a number that is not exact here`,
        {
          path,
          advice: `name it in ignoreKeys to have ${JSON.stringify(usual)} written in its place`,
        },
      );
    }
    return [[key, value] as const];
  });
  return kept.length === 0 ? null : Object.fromEntries(kept);
}

/** The keys of a configuration that were kept from its file, of those that its type has. */
function writtenAgain(config: LoraConfig): Record<string, PythonJson> {
  const idle = idleKeys(typeOf(config));
  const kept = Object.entries(config.keptKeys ?? {}).filter(([key]) => Object.hasOwn(idle, key));
  return Object.fromEntries(kept);
}

/** The start of a configuration with keys in snake case, which PEFT's objects may name in part. */
const startOf = (raw: Raw): unknown => startWithLoftqConfig(raw, startWithCordaMethod(raw));

/** Keys that the configurations of all types have. */
const kCommonKeys = [
  'base_model_name_or_path',
  'inference_mode',
  'layers_pattern',
  'layers_to_transform',
  'modules_to_save',
  'r',
  'revision',
  'target_modules',
  'task_type',
];

/** The values in a file of a type under the keys of the options. @throws FormatError, UnsupportedError */
function valuesOf(
  raw: Raw,
  type: AdapterType,
  { path, ignored }: { path: string; ignored: ReadonlySet<string> },
): Raw {
  const { peftType } = type;
  const keys = keysOf(type);
  const values: Raw = { peft_type: peftType };
  for (const [key, value] of Object.entries(raw)) {
    const known = Object.hasOwn(keys, key) ? (keys[key] as ConfigKey) : null;
    if (known !== null && 'option' in known) {
      values[snake(known.option)] = known.fromFile ? known.fromFile(value) : value;
    } else if (kCommonKeys.includes(key)) values[key] = value;
    else if (key === 'peft_type' || isIgnored(key, value, ignored)) continue;
    else if (known === null) throw new UnsupportedError(notUnderstood(path, key, value));
    else if ('only' in known && value !== known.only) {
      throw new UnsupportedError(
        `${path}: ${key} = ${shown(value)} is not supported for peft_type "${peftType}", only ${shown(known.only)} is; ` +
          'name it in ignoreKeys if it changes nothing here',
      );
    }
  }
  // The default of PEFT's LoRA is that of the option; other types have others.
  if (values.r !== undefined || type.pair !== undefined) return values;
  throw new FormatError(`${path}: r is missing`, { path });
}

/** The text of adapter_config.json, byte for byte as PEFT 0.21 writes it (no newline at the end). */
export function formatAdapterConfig(config: LoraConfig): string {
  const type = typeOf(config);
  const writtenOf = (name: string): PythonJson => {
    const { toPeft } = loraOptions[name as keyof typeof loraOptions] as Option & PeftForm;
    const value = config[name as keyof LoraConfig];
    return toPeft?.(value as never) ?? plainJson(value);
  };
  const common = kCommonKeys.map((key) => [key, writtenOf(camel(key))] as const);
  const particular = Object.entries(keysOf(type)).flatMap(
    ([key, known]): [string, PythonJson][] => {
      if ('only' in known) return [[key, known.only]];
      if ('idle' in known) return [[key, known.idle]];
      if ('written' in known) return [[key, known.written]];
      const { option, toFile, whereSet = false } = known;
      if (whereSet && !isSet(option, config)) return [];
      return [[key, toFile?.(config[option as keyof LoraConfig] as never) ?? writtenOf(option)]];
    },
  );
  return pythonJson({
    auto_mapping: null,
    peft_type: type.peftType,
    peft_version: PEFT_VERSION,
    ...Object.fromEntries([...common, ...particular]),
    ...peftStart(config.initLoraWeights, writtenAgain(config)),
  });
}

/** The keys of a type's files beside the common ones; LoRA's have the switches, too, those that PEFT does not have only where they are on. */
function keysOf(type: AdapterType): Readonly<Record<string, ConfigKey>> {
  if (type.pair === undefined) return type.keys;
  const switches = Object.keys(TYPE_OPTIONS[type.peftType] as OptionTable).map((option) => {
    const key = snake(option);
    const isOfPeft = PEFT_SWITCHES.includes(option as keyof MethodSwitches);
    const whereSet = !isOfPeft && !Object.hasOwn(UNSUPPORTED_KEYS, key);
    return [key, { option, whereSet }] as const;
  });
  return { ...type.keys, ...Object.fromEntries(switches) };
}

/** Whether an option has another value than its default. */
function isSet(name: string, config: LoraConfig): boolean {
  const option: Option = loraOptions[name as keyof typeof loraOptions];
  return config[name as keyof LoraConfig] !== defaultOf(option);
}

const plainJson = (value: unknown): PythonJson =>
  Array.isArray(value) ? [...value] : (value as PythonJson);

/** The scale s of an update: alpha / r, with rank-stabilised LoRA alpha / sqrt(r); 1 for a type that has no alpha. */
export function loraScale(
  alpha: number,
  r: number,
  config: MethodSwitches & { readonly peftType: string },
): number {
  const { scale } = typeOf(config);
  if (scale !== undefined) return scale({ ...config }, alpha);
  return hasAlpha(config.peftType) ? alpha / scalingOf(config).divisor(r) : 1;
}

/** Whether the updates of a type are scaled by an alpha. */
export function hasAlpha(peftType: string): boolean {
  const { keys } = typeOf({ peftType });
  return Object.values(keys).some((key) => 'option' in key && key.option === 'loraAlpha');
}

/**
 * The adapter configuration's part of a run's identity; a start function is represented by the digest of the values it returned.
 */
export function configIdentity(
  config: LoraConfig,
  startDigest: string | null,
): Record<string, unknown> {
  const { initLoraWeights: init } = config;
  const start = typeof init === 'function' ? `function ${startDigest}` : init;
  const others = defaultsOf(loraOptions);
  return identityOfTable(loraOptions, { ...others, ...config, initLoraWeights: start });
}

/** Whether a value switches a feature off under any key, as PEFT writes features that are not used. */
function isNeutral(value: unknown): boolean {
  if (value === null || value === false) return true;
  return typeof value === 'object' && Object.keys(value as object).length === 0;
}

function refuseUnsupported(raw: Raw): void {
  for (const [key, value] of Object.entries(raw)) {
    if (kByKey.has(key) || isIgnored(key, value) || value === UNSUPPORTED_KEYS[key]) continue;
    throw new UnsupportedError(
      `loraConfig: ${key} = ${shown(value)} is not supported yet; leave it out`,
    );
  }
}

/** @param ignored keys of a file that the caller knows to be harmless */
function isIgnored(key: string, value: unknown, ignored: ReadonlySet<string> = new Set()): boolean {
  if (kIgnored.has(key) || ignored.has(key)) return true;
  // An object of settings switches on what it belongs to, also where all of them are the defaults.
  const isOn = Object.hasOwn(UNSUPPORTED_KEYS, key) && shown(value) === '{}';
  return isNeutral(value) && !isOn;
}

function notUnderstood(where: string, key: string, value: unknown): string {
  return (
    `${where}: the key "${key}" = ${shown(value)} is not understood and may change the mathematics; ` +
    'name it in ignoreKeys if it does not'
  );
}

interface Source {
  /** Name of the file, or of the function that was called, for messages. */
  readonly where: string;
  readonly inFile: boolean;
  /** The spelling in which a key was given. */
  nameOf(key: string): string | undefined;
}

/** Builds a checked configuration from snake case keys; defaults fill what is absent. */
function build(raw: Raw, { where, inFile, nameOf }: Source): LoraConfig {
  const values = Array.from(kByKey, ([key, { name, option }]) => {
    const given = raw[key];
    const { absentInPeft } = option;
    if (given === undefined || isAbsent(option, given)) {
      const absent = inFile && absentInPeft !== undefined ? absentInPeft : defaultOf(option);
      return [name, normalized(option, absent)];
    }
    const read = inFile && option.inPeft ? { ...option, schema: option.inPeft } : option;
    return [name, normalized(option, checkValue(`${where}: ${nameOf(key)}`, read, given))];
  });
  const all = Object.fromEntries(values) as unknown as ResolvedOf<typeof loraOptions>;
  const name = (option: string): string => nameOf(snake(option)) ?? option;
  checkTogether(loraChecks, all, { where, name });
  return withoutOthers(all);
}

/** Whether a null only means that the option is not set, as PEFT writes it, and is not a value of the option itself. */
function isAbsent({ default: value, schema }: Option, given: unknown): boolean {
  return given === null && value !== null && !schema.safeParse(null).success;
}
