/**
 * The result of a calibration: the tensors that a data-driven start (EVA, CorDA, LoRA-GA) keeps of the user's data for each module, with
 * the identity of what they were computed from. lib/train/calibrate.ts makes it; it is kept in a safetensors file.
 */
import { createHash } from 'node:crypto';
import { z } from 'zod';
import { ArgumentError, FormatError, UnsupportedError } from '../errors.ts';
import { loadSafetensors, saveSafetensors } from '../io/safetensors.ts';
import { type BaseDigest, baseDigest } from '../models/base_digest.ts';
import type { Model } from '../models/index.ts';
import { checkArgument, checkKeys, kCall } from '../options/call.ts';
import { shown } from '../shown.ts';
import { disposeOnError, type Tensor } from '../tensor.ts';
import { tensorsDigest } from './adapter_metadata.ts';
import type { CalibrationSettings, Start, Statistics } from './methods/method.ts';
import type { CalibratedModule, PairTarget } from './starts.ts';

/** Keys of the file's metadata: what the tensors were computed from, and their digest. */
const kFacts = 'balora_calibration';
const kTensors = 'balora_tensors';
const kVersion = 1;
const kDigits = 16;

/** Name of the tensor (1) of a module with the share of its gradient that is held. */
export const ENERGY = 'energy';

/** A calibrated module, by its path: its rank, and the first module with the same input. */
const kModule = z.strictObject({ r: z.int().min(1), inputOf: z.string() });

/** The form of {@link CalibrationFacts} in a file. */
export const factsSchema = {
  start: z.string(),
  base: z.strictObject({
    version: z.int(),
    of: z.enum(['files', 'memory']),
    config: z.string(),
    tensors: z.string(),
  }),
  data: z.string(),
  batches: z.int().min(1),
  settings: z.record(z.string(), z.union([z.number(), z.string(), z.boolean()])),
  modules: z.record(z.string(), kModule),
};
const kFactsSchema = z.strictObject({ version: z.literal(kVersion), ...factsSchema });

/** The source of a calibration's numbers. */
export interface CalibrationFacts {
  /** The value of `initLoraWeights` that it is for. */
  readonly start: string;
  /** Digest of the base. */
  readonly base: BaseDigest;
  /** Fingerprint of the data. */
  readonly data: string;
  /** Number of micro-batches that were read, once or as often as the start needed. */
  readonly batches: number;
  /** Settings of the start's calibration, such as EVA's rho. */
  readonly settings: CalibrationSettings;
  /** Rank and first module with the same input, by the module's path. */
  readonly modules: Readonly<Record<string, { readonly r: number; readonly inputOf: string }>>;
}

/** The small tensors that a data-driven start keeps of the user's data. Made by `calibrate`, or read from a file by `Calibration.load`. */
export class Calibration {
  readonly facts: CalibrationFacts;
  readonly #tensors: Readonly<Record<string, Tensor>>;

  /** @param tensors by `<module>|<name>`, owned by the calibration from now on */
  constructor(facts: CalibrationFacts, tensors: Readonly<Record<string, Tensor>>) {
    this.facts = facts;
    this.#tensors = tensors;
  }

  /** The name of a tensor of a module. */
  static keyOf(module: string, name: string): string {
    return `${module}|${name}`;
  }

  /**
   * Reads the file of a calibration.
   * @param options device: device of the tensors
   * @throws FormatError for a file that is damaged or holds something else, UnsupportedError for one of another version
   */
  static async load(path: string, options: { device?: string } = {}): Promise<Calibration> {
    checkArgument('Calibration.load: the path', kCall.path, path);
    checkKeys('Calibration.load', options, 'device');
    const { tensors, metadata } = await loadSafetensors(path, { ...options, checkFinite: true });
    return disposeOnError(Object.values(tensors), async () => {
      const facts = factsOf(metadata[kFacts], path);
      if (metadata[kTensors] !== (await tensorsDigest(tensors))) {
        throw new FormatError(
          `${path}: the tensors are not those that were saved: the file is damaged`,
          { path, advice: 'remove the file and calibrate again' },
        );
      }
      return new Calibration(facts, tensors);
    });
  }

  /** Writes the calibration to a safetensors file, which appears whole or not at all. */
  async save(path: string): Promise<void> {
    checkArgument('Calibration.save: the path', kCall.path, path);
    await saveSafetensors(path, this.#tensors, {
      format: 'pt',
      [kFacts]: JSON.stringify({ version: kVersion, ...this.facts }),
      [kTensors]: await tensorsDigest(this.#tensors),
    });
  }

  /** A digest of what the calibration was computed from: part of the identity of a run that starts from it. */
  get identity(): string {
    const { modules, ...facts } = this.facts;
    const sorted = Object.entries(modules).sort(([a], [b]) => (a < b ? -1 : 1));
    const text = JSON.stringify([facts, sorted]);
    return createHash('sha256').update(text).digest('hex').slice(0, kDigits);
  }

  /**
   * The facts in which this calibration differs from the one that is wanted, as the end of a message; null: in none.
   * @param wanted facts that must be the same; those that are left out may be any
   */
  difference(wanted: Partial<CalibrationFacts>): string | null {
    const { facts } = this;
    if (wanted.start !== undefined && wanted.start !== facts.start)
      return `for initLoraWeights ${shown(facts.start)}, not ${shown(wanted.start)}`;
    if (wanted.base !== undefined && !isSame(wanted.base, facts.base)) return 'on another base';
    if (wanted.data !== undefined && wanted.data !== facts.data)
      return 'with other data, in another order or in other micro-batches';
    if (wanted.batches !== undefined && wanted.batches !== facts.batches)
      return `with ${facts.batches} micro-batches, not ${wanted.batches}`;
    for (const [name, value] of Object.entries(wanted.settings ?? {})) {
      if (facts.settings[name] === value) continue;
      return `with ${name} ${facts.settings[name] ?? 'unknown'}, not ${value}`;
    }
    for (const [name, { r }] of Object.entries(wanted.modules ?? {})) {
      const found = facts.modules[name];
      if (found === undefined) return `without the module ${name}`;
      if (found.r !== r) return `for rank r=${found.r} of ${name}, not r=${r}`;
    }
    return null;
  }

  /** The part of a module. */
  of(name: string): CalibratedModule {
    const inputOf = this.facts.modules[name]?.inputOf ?? name;
    const { settings } = this.facts;
    return { inputOf, settings, statistics: { ...this.#of(inputOf), ...this.#of(name) } };
  }

  /**
   * The share of the squared norm of each module's gradient that the singular triplets hold of which the start takes some, by the module's
   * path; null for a start that reads no gradients.
   */
  async energies(): Promise<Readonly<Record<string, number>> | null> {
    const names = Object.keys(this.facts.modules);
    const all = names.map((name) => [name, this.#of(name)[ENERGY]] as const);
    if (all.every(([, energy]) => energy === undefined)) return null;
    const shares = all.map(async ([name, energy]) => [name, Number((await energy?.data())?.[0])]);
    return Object.fromEntries(await Promise.all(shares));
  }

  #of(module: string): Statistics {
    const prefix = Calibration.keyOf(module, '');
    const own = Object.entries(this.#tensors).filter(([key]) => key.startsWith(prefix));
    return Object.fromEntries(own.map(([key, tensor]) => [key.slice(prefix.length), tensor]));
  }

  /** Frees the tensors. */
  dispose(): void {
    for (const tensor of Object.values(this.#tensors)) tensor.dispose();
  }
}

/**
 * Checks that a calibration is there where a start needs one, and that it is that of the model and the configuration.
 * @throws ArgumentError
 */
export async function checkCalibration(
  model: Model,
  {
    init,
    start,
    targets,
    settings,
  }: {
    init: unknown;
    start: Start | null;
    targets: readonly PairTarget[];
    /** Settings that the configuration asks for. */
    settings: CalibrationSettings;
  },
  calibration: Calibration | null,
): Promise<void> {
  if (start?.calibration === undefined) {
    if (calibration === null) return;
    throw new ArgumentError(
      `calibration: initLoraWeights ${shown(init)} is not computed from data; leave the calibration out`,
    );
  }
  if (calibration === null) {
    throw new ArgumentError(
      `initLoraWeights ${shown(init)} is computed from data; pass calibration, made by calibrate(model, config, { data })`,
    );
  }
  const modules = Object.fromEntries(targets.map(({ name, r }) => [name, { r, inputOf: name }]));
  const base = await baseDigest(model);
  const difference = calibration.difference({ start: String(init), base, modules, settings });
  if (difference === null) return;
  throw new ArgumentError(`calibration: it was made ${difference}; calibrate again`);
}

/** Whether two digests are those of one base. */
function isSame(a: BaseDigest, b: BaseDigest): boolean {
  return (['version', 'of', 'config', 'tensors'] as const).every((key) => a[key] === b[key]);
}

function factsOf(text: string | undefined, path: string): CalibrationFacts {
  const refuse = (what: string): never => {
    throw new FormatError(`${path}: ${what}`, {
      path,
      advice: 'give a file that balora calibrate wrote',
    });
  };
  if (text === undefined) return refuse('is not the file of a calibration');
  let facts: unknown;
  try {
    facts = JSON.parse(text);
  } catch (error) {
    return refuse(`${kFacts} is not JSON: ${(error as Error).message}`);
  }
  const version = (facts as { version?: unknown } | null)?.version;
  if (typeof version === 'number' && version !== kVersion) {
    throw new UnsupportedError(
      `${path}: is a calibration of version ${version}, and this balora reads version ${kVersion}; calibrate again`,
    );
  }
  const found = kFactsSchema.safeParse(facts);
  if (!found.success) {
    const [issue] = found.error.issues as [z.core.$ZodIssue];
    return refuse(`${kFacts}: ${issue.path.join('.')}: ${issue.message}`);
  }
  const { version: _, ...rest } = found.data;
  return rest;
}
