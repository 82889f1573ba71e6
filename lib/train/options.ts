/**
 * The options of a run with every default filled in and every value checked, and the comparison of identities: those of a
 * checkpoint and of a run must be the same for the run to continue the checkpoint bit for bit.
 */
import { isDeepStrictEqual } from 'node:util';
import { loraOptions } from '../adapters/lora_options.ts';
import { ArgumentError } from '../errors.ts';
import { learningRateSchedule } from '../optim/schedulers.ts';
import {
  checkTogether,
  defaultsOf,
  type InputOf,
  identityOfTable,
  type OptionTable,
  type ResolvedOf,
  resolveTable,
} from '../options/option.ts';
import { shown } from '../shown.ts';
import type { TaskName } from '../tasks/list.ts';
import {
  REGULARIZER_OPTIONS,
  type RegularizerOptions,
  type ResolvedRegularizers,
  resolveRegularizers,
} from './regularizers.ts';
import {
  bestOptions,
  optimizationOptions,
  outputOptions,
  preparationOptions,
  resourceOptions,
  seedOptions,
  trainerChecks,
  trainerOptions,
} from './schema.ts';
import type { OptimizationOptions, OutputOptions, ResourceOptions } from './types.ts';

export interface ResolvedOptimization extends ResolvedOf<typeof optimizationOptions> {}

export interface ResolvedOutput extends ResolvedOf<typeof outputOptions> {}

export interface ResolvedResources extends ResolvedOf<typeof resourceOptions> {}

/** Options of a run with every default filled in. */
export interface ResolvedOptions {
  readonly optimization: ResolvedOptimization;
  readonly regularizers: ResolvedRegularizers;
  readonly output: ResolvedOutput;
  readonly resources: ResolvedResources;
  readonly seed: number;
}

/** The option by which a run keeps its teacher's outputs; null if it does not. */
export function teacherCacheOption({
  resources,
}: ResolvedOptions): 'cacheTeacher' | 'teacherCache' | null {
  if (resources.cacheTeacher) return 'cacheTeacher';
  return resources.teacherCache === null ? null : 'teacherCache';
}

export interface OptionsInput
  extends OptimizationOptions,
    OutputOptions,
    ResourceOptions,
    InputOf<typeof seedOptions> {
  regularizers?: RegularizerOptions;
}

/**
 * Picks and checks the options of a run.
 * @throws ArgumentError with the option's name and value
 */
export function resolveOptions(input: OptionsInput, task: TaskName = 'causal-lm'): ResolvedOptions {
  const optimization = resolveTable(optimizationOptions, input);
  const { output, runConfig, commandLine, ...whenWritten } = resolveTable(outputOptions, input);
  const { seed } = resolveTable(seedOptions, input);
  // These are only checked here; the trainer reads them as given, since their defaults depend on the model.
  resolveTable({ ...preparationOptions, ...bestOptions }, input);
  checkTogether(trainerChecks, input);
  checkSchedule(optimization);
  return {
    optimization,
    regularizers: resolveRegularizers(input.regularizers ?? {}, task),
    resources: resolveTable(resourceOptions, input),
    output: { ...whenWritten, output, runConfig, commandLine },
    seed,
  };
}

/** Characters of a value that a difference shows: those of all options of an adapter. */
const kShown = 2000;

/** Everything that the numbers of a run depend on, as plain JSON. */
export type Identity = Record<string, unknown>;

/** All options that can be part of an identity. */
const kIdentityOptions = { ...trainerOptions, ...REGULARIZER_OPTIONS, ...loraOptions };

/** Parts of an identity that hold options under their own names. */
const kParts = ['adapter', 'dataOptions', 'preparation'];

/** The parts that may differ where a digest does, and no option that accounts for it. */
const kDigests: Readonly<Record<string, string>> = {
  data: 'the rows of the data, or the tokenizer',
  calibration: 'the data of the calibration, its number of micro-batches or its settings',
};

/**
 * The differences between two identities, as lines of the form `key: was ..., is ...`, `not set` being null; empty when a checkpoint
 * may be continued. A line is about one option, under its own name; a digest is named only where no option accounts for it. An option
 * that did not exist when the checkpoint was written counts as having its default value, so that new options do not make older
 * checkpoints unusable.
 */
export function differences(then: Identity, now: Identity): string[] {
  const defaults: Identity = identityOfTable(kIdentityOptions, defaultsOf(kIdentityOptions));
  const found = new Map<string, [was: unknown, is: unknown]>();
  const compare = (key: string, was: unknown, is: unknown): void => {
    if (!isDeepStrictEqual(asJson(was), asJson(is))) found.set(key, [was, is]);
  };
  for (const key of keysOf(then, now)) {
    // A file may have a key such as `constructor`, which every object has.
    const [was = null, is = null] = [[then, defaults], [now]].map(
      (from) => from.find((identity) => Object.hasOwn(identity, key))?.[key],
    );
    const before = key === 'adapter' ? withDefaults(was, loraOptions) : was;
    // Options of data that are the same in effect: the fingerprint decides. Those of older checkpoints are not known.
    if (key === 'dataOptions' && (was === null || isDeepStrictEqual(then.data, now.data))) continue;
    if (!kParts.includes(key) || [before, is].some((part) => part !== null && !isObject(part))) {
      compare(key, before, is);
      continue;
    }
    const [old, own] = [optionsIn(before), optionsIn(is)];
    for (const name of keysOf(old, own)) {
      if (!found.has(name)) compare(name, old[name] ?? null, own[name] ?? null);
    }
  }
  // On the command line one seed is that of everything.
  if (found.has('seed') && isDeepStrictEqual(found.get('seed'), found.get('adapterSeed'))) {
    found.delete('adapterSeed');
  }
  const isDerived = (key: string, from: readonly string[]): void => {
    if (from.some((name) => name !== key && found.has(name))) found.delete(key);
  };
  const ofData = keysOf(...[then, now].map((part) => optionsIn(part.dataOptions)));
  const ofAdapter = keysOf(...[then, now].map((part) => optionsIn(part.adapter)));
  isDerived('fields', ofData);
  isDerived('calibration', ['seed', 'data', ...ofData, ...ofAdapter]);
  isDerived('data', ofData);
  return [...found].sort(([a], [b]) => (a < b ? -1 : 1)).map(([key, values]) => line(key, values));
}

const isObject = (value: unknown): boolean =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

const optionsIn = (part: unknown): Identity => (isObject(part) ? (part as Identity) : {});

const keysOf = (...parts: readonly Identity[]): string[] =>
  [...new Set(parts.flatMap((part) => Object.keys(part)))].sort();

function line(key: string, values: readonly [was: unknown, is: unknown]): string {
  const [before, after] = values.map((value) =>
    value === null ? 'not set' : shown(value, kShown),
  );
  const what = Object.hasOwn(kDigests, key) ? `, of ${kDigests[key]}` : '';
  return `${key}: was ${before}, is ${after}${what}`;
}

/** Identity of a table's options as a checkpoint has it, completed by those that did not exist when it was written. */
function withDefaults(part: unknown, table: OptionTable): unknown {
  if (typeof part !== 'object' || part === null) return part;
  return { ...identityOfTable(table, resolveTable(table, {})), ...part };
}

/** A value as its JSON holds it: the order of keys does not count, that of lists does. */
function asJson(value: unknown): unknown {
  return JSON.parse(JSON.stringify(value));
}

/**
 * Refuses options from which no schedule can be made, whatever the length of the run.
 * @throws ArgumentError that names `lrSchedulerKwargs`
 */
function checkSchedule(options: ResolvedOptimization): void {
  try {
    learningRateSchedule({
      scheduler: options.lrSchedulerType,
      learningRate: options.learningRate,
      options: options.lrSchedulerKwargs,
      total: 1,
      warmup: 0,
    });
  } catch (error) {
    if (!(error instanceof ArgumentError)) throw error;
    throw new ArgumentError(`lrSchedulerKwargs: ${error.message}`);
  }
}
