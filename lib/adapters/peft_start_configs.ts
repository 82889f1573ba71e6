/**
 * PEFT's objects with the settings of single starts: `corda_config`, `eva_config`, `loftq_config`, `lora_ga_config`. For an adapter that is
 * to be made they choose the start and how it is calibrated; in one that has been made they change nothing, but for LoftQ's, which says
 * what its base is.
 */
import { ArgumentError, UnsupportedError } from '../errors.ts';
import { unknownOption } from '../options/call.ts';
import { camel, snake } from '../options/option.ts';
import { shown } from '../shown.ts';
import type { CalibrationSettings } from './methods/method.ts';
import type { PythonJson } from './python_json.ts';

/** An object of PEFT's: the keys that are settings of the calibration, and those that may have one value only. */
interface StartConfig {
  readonly key: string;
  readonly starts: readonly string[];
  readonly settings: readonly string[];
  readonly only: Readonly<Record<string, unknown>>;
}

const kConfigs: readonly StartConfig[] = [
  {
    key: 'eva_config',
    starts: ['eva'],
    settings: ['rho', 'tau', 'whiten'],
    only: { use_label_mask: true, label_mask_value: -100, adjust_scaling_factors: true },
  },
  {
    key: 'lora_ga_config',
    starts: ['lora_ga', 'lora_ga_peft'],
    settings: ['direction', 'scale', 'stable_gamma'],
    only: {},
  },
];

/** The values of PEFT's `corda_method`, and the starts that they name. */
const kCordaMethods: Readonly<Record<string, string>> = { ipm: 'corda', kpm: 'corda_kpm' };

type Given = Readonly<Record<string, unknown>>;

/** The keys of PEFT's LoftQConfig. */
const kLoftqKeys: readonly string[] = ['loftq_bits', 'loftq_iter'];

/** An object of a configuration in either spelling; null: there is none. */
function objectOf(config: object, key: string): Given | null {
  const given = config as Given;
  const value = given[key] ?? given[camel(key)];
  return typeof value === 'object' && value !== null ? (value as Given) : null;
}

/**
 * The start of a configuration, `corda` with PEFT's `corda_method` (`ipm`, `kpm`) as one of `corda` and `corda_kpm`.
 * @param config keys in snake case
 * @throws ArgumentError for another method, or one that is not that of the start
 */
export function startWithCordaMethod(config: Given): unknown {
  const { init_lora_weights: init } = config;
  if (init !== 'corda' && init !== 'corda_kpm') return init;
  const corda = objectOf(config, 'corda_config');
  const method = corda?.corda_method ?? corda?.cordaMethod;
  if (method === undefined || method === null) return init;
  const isKnown = typeof method === 'string' && Object.hasOwn(kCordaMethods, method);
  const start = isKnown ? kCordaMethods[method] : undefined;
  if (start === undefined) {
    throw new ArgumentError(`corda_config: corda_method must be ipm or kpm, got ${shown(method)}`);
  }
  if (init !== 'corda' && init !== start) {
    throw new ArgumentError(
      `corda_config: corda_method ${method} does not fit init_lora_weights ${init}; leave one of them out`,
    );
  }
  return start;
}

/**
 * The start of a configuration, `loftq` with PEFT's `loftq_iter` as `loftq_iter_N`.
 * @param config keys in snake case
 * @throws ArgumentError for a key that PEFT does not have, for a number that is none of steps, or not that of the start;
 *   UnsupportedError for another width than 4 bits
 */
export function startWithLoftqConfig(config: Given, init: unknown): unknown {
  const loftq = objectOf(config, 'loftq_config');
  if (loftq === null || typeof init !== 'string' || !/^loftq(_|$)/.test(init)) return init;
  const unknown = Object.keys(loftq).find((key) => !kLoftqKeys.includes(snake(key)));
  if (unknown !== undefined) throw unknownOption('loftq_config', unknown, kLoftqKeys);
  const { loftq_bits: bits = loftq.loftqBits ?? 4, loftq_iter: steps = loftq.loftqIter } = loftq;
  if (bits !== 4) {
    throw new UnsupportedError(
      `loftq_config: loftq_bits = ${shown(bits)} is not supported, only 4 is`,
    );
  }
  if (steps === undefined) return init;
  if (!Number.isInteger(steps) || (steps as number) < 1) {
    throw new ArgumentError(
      `loftq_config: loftq_iter must be a whole number, at least 1, got ${shown(steps)}`,
    );
  }
  const start = steps === 1 ? 'loftq' : `loftq_iter_${steps}`;
  if (init === 'loftq' || init === start) return start;
  throw new ArgumentError(
    `loftq_config: loftq_iter ${steps} does not fit init_lora_weights ${init}; leave one of them out`,
  );
}

/**
 * A start as PEFT writes it: of those that are named here by one of the objects, PEFT's word, with the object that says the rest.
 * @param kept keys that were read beside it, as they are written again
 */
export function peftStart(
  init: unknown,
  kept: Readonly<Record<string, PythonJson>>,
): Record<string, PythonJson> {
  const steps = /^loftq_iter_(\d+)$/.exec(String(init))?.[1];
  const beside = (key: string): Readonly<Record<string, PythonJson>> | null =>
    objectOf(kept, key) as Readonly<Record<string, PythonJson>> | null;
  if (init === 'corda_kpm') {
    const corda = { ...beside('corda_config'), corda_method: 'kpm' };
    return { ...kept, corda_config: corda, init_lora_weights: 'corda' };
  }
  if (steps === undefined) return kept;
  const loftq = { ...(beside('loftq_config') ?? { loftq_bits: 4 }), loftq_iter: Number(steps) };
  return { ...kept, loftq_config: loftq, init_lora_weights: 'loftq' };
}

/**
 * The settings of a start's calibration in PEFT's object for it, under their names here; none where there is no such object.
 * @throws ArgumentError for a key that PEFT does not have, UnsupportedError for a value that is not supported
 */
export function peftStartSettings(config: object, init: unknown): CalibrationSettings {
  const found = kConfigs.find(({ starts }) => starts.includes(init as string));
  const given = found && objectOf(config, found.key);
  if (found === undefined || given === null || given === undefined) return {};
  const settings: Record<string, number | string | boolean> = {};
  for (const [name, value] of Object.entries(given)) {
    const key = snake(name);
    if (found.settings.includes(key)) {
      if (!['number', 'string', 'boolean'].includes(typeof value)) {
        throw new ArgumentError(
          `${found.key}: ${name} must be a number, a text, or true or false, got ${shown(value)}`,
        );
      }
      settings[camel(key)] = value as number;
    } else if (!Object.hasOwn(found.only, key)) {
      throw unknownOption(found.key, name, [...found.settings, ...Object.keys(found.only)]);
    } else if (found.only[key] !== value) {
      throw new UnsupportedError(
        `${found.key}: ${name} = ${shown(value)} is not supported, only ${shown(found.only[key])} is`,
      );
    }
  }
  return settings;
}
