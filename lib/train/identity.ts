/** The identity of a run: everything that must be the same for a checkpoint to be continued bit for bit, and how identities differ. */
import { isDeepStrictEqual } from 'node:util';
import { loraOptions } from '../adapters/lora_options.ts';
import type { TunedModel } from '../adapters/tuned_model.ts';
import { baseDigest, baseSummary } from '../models/base_digest.ts';
import type { Model } from '../models/index.ts';
import {
  defaultsOf,
  identityOfTable,
  isObject,
  type OptionTable,
  resolveTable,
} from '../options/option.ts';
import { shown } from '../shown.ts';
import { REGULARIZER_OPTIONS } from './regularizers.ts';
import type { ResolvedRun } from './resolve_run.ts';
import {
  optimizationOptions,
  outputOptions,
  preparationOptions,
  resourceOptions,
  seedOptions,
  trainerOptions,
} from './schema.ts';
import type { AnyTrainerOptions } from './trainer_options.ts';
import type { RunPlan } from './types.ts';

/** Everything that the numbers of a run depend on, as plain JSON. */
export type Identity = Record<string, unknown>;

/**
 * The identity of a run, which covers everything that its numbers depend on except the number of threads and the machine; see
 * docs/repeatability.md for what is reproducible.
 */
export async function identityOf(
  input: AnyTrainerOptions,
  options: ResolvedRun,
  plan: RunPlan,
): Promise<Identity> {
  const sharesPrefixes = input.tuned.model.sharePrefixes && !options.resources.captureGraphs;
  return {
    ...partOf(optimizationOptions, options.optimization),
    // A loss of the caller's own replaces all terms.
    ...(input.loss === undefined && partOf(REGULARIZER_OPTIONS, options.regularizers)),
    warmupSteps: plan.warmupSteps,
    ...partOf(seedOptions, options),
    data: input.data.fingerprint,
    ...(input.data.settings !== undefined && { dataOptions: input.data.settings }),
    dtype: input.tuned.model.dtype,
    baseModel: await baseModel(input.tuned),
    ...(input.tuned.model.blockFormat !== null && { baseFormat: input.tuned.model.blockFormat }),
    ...partOf(resourceOptions, options.resources),
    ...(!sharesPrefixes && { sharePrefixes: false }),
    customLoss: input.loss !== undefined,
    ...(input.terms !== undefined &&
      input.terms.length > 0 && { terms: input.terms.map(({ key }) => key) }),
    ...(input.afterBackward !== undefined && { afterBackward: true }),
    ...partOf(outputOptions, options.output),
    ...partOf(preparationOptions, options),
    ...input.tuned.identity(),
  };
}

const partOf = (table: OptionTable, values: object): Identity =>
  identityOfTable(table, values as Identity);

/**
 * A description of a model that does not depend on its path: copies in different folders are the same, models with different
 * weights are not.
 */
async function baseModel(tuned: TunedModel<Model>): Promise<string> {
  const digest = await (tuned.hasTeacher ? tuned.withTeacher(baseDigest) : baseDigest(tuned.model));
  // Where all weights are trained, the checkpoint contains each of them, unless they have a frozen copy.
  const isTrained = tuned.kind === 'full' && !tuned.hasTeacher;
  return baseSummary(tuned.model, digest, { tensors: !isTrained });
}

/** Characters of a value that a difference shows: those of all options of an adapter. */
const kShown = 2000;

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

const optionsIn = (part: unknown): Identity => (isObject(part) ? part : {});

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
