/**
 * The adapter in a run's checkpoint. A checkpoint holds more than a PEFT folder: the first pairs of an adapter that starts from the
 * weights are beside the trained ones, so that they need not be computed again.
 */
import { join } from 'node:path';
import { z } from 'zod';
import { ArgumentError, FormatError, UnsupportedError } from '../errors.ts';
import { CheckedFolder } from '../io/checksums.ts';
import { CHECKPOINT_FILES, CHECKPOINT_FORMAT, TUNED_PREFIX } from '../io/run_folder.ts';
import { SafetensorsFile } from '../io/safetensors.ts';
import { baseDigest, baseSummary } from '../models/base_digest.ts';
import type { Model } from '../models/index.ts';
import { synchronize } from '../runtime.ts';
import { disposeOnError, type Tensor } from '../tensor.ts';
import { stateName } from './adapted_linear.ts';
import type { BaseCheck } from './adapter_metadata.ts';
import { type LoraConfig, loraConfig } from './config.ts';
import { FIRST_KEYS, LESS_KEYS, type LowRankPair } from './low_rank.ts';
import { tensorsOf } from './methods/method.ts';
import { VARIANT_PARAMETERS, variantOf } from './methods/registry.ts';
import { checkModule, type PeftFolder } from './peft_folder.ts';

/** An adapter as a checkpoint holds it. */
export interface CheckpointFolder extends PeftFolder {
  readonly checkpoint: SavedRun;
  readonly firstPairs: ReadonlyMap<string, LowRankPair>;
  readonly lessPairs: ReadonlyMap<string, LowRankPair>;
}

/** The run of a checkpoint, by the checkpoint's state. */
export interface SavedRun {
  readonly step: number;
  readonly totalSteps: number;
  readonly taskType: string | null;
  /** The line that identifies the base; see {@link baseSummary}. */
  readonly baseModel: string;
  /** The base's dtype. */
  readonly dtype: string;
  /** Whether the base is a residual, so that the model before tuning is another one. */
  readonly onResidual: boolean;
  /** Whether the adapter has a base of its own, which its start made of the base. */
  readonly onQuantized: boolean;
  readonly config: LoraConfig;
}

/** The fields of a state file that say which step of which run it is of. */
export const RUN_STATE = {
  format: z.literal(CHECKPOINT_FORMAT),
  step: z.int().positive(),
  totalSteps: z.int().positive(),
  /** PEFT's name for the model's task. */
  taskType: z.string().optional(),
};

/** The part of a state file that is read here; lib/train/checkpoint_state.ts has all of it. */
const kState = z.looseObject({
  ...RUN_STATE,
  identity: z.looseObject({
    method: z.string(),
    baseModel: z.string(),
    dtype: z.string(),
    adapter: z.record(z.string(), z.unknown()).optional(),
  }),
});

/**
 * Checks the files of a checkpoint, and reads what it says of its run.
 * @throws FormatError for damaged files, UnsupportedError for a checkpoint without an adapter
 */
export async function readSavedRun(folder: string): Promise<SavedRun> {
  const checked = await CheckedFolder.open(folder);
  await checked.verify(CHECKPOINT_FILES.tensors);
  return savedRunOf(checked);
}

async function savedRunOf(checked: CheckedFolder): Promise<SavedRun> {
  const folder = checked.path;
  const path = join(folder, CHECKPOINT_FILES.state);
  const text = await checked.text(CHECKPOINT_FILES.state);
  const found = kState.safeParse(parsed(text, path));
  if (!found.success) {
    const [issue] = found.error.issues as [z.core.$ZodIssue];
    throw new FormatError(`${path}: ${issue.path.join('.')}: ${issue.message}`, { path });
  }
  const { step, totalSteps, taskType = null, identity } = found.data;
  if (identity.adapter === undefined) {
    throw new UnsupportedError(
      `${folder} is a checkpoint of the method ${identity.method}, which has no adapter; resume its run to get the model`,
    );
  }
  const config = configOf(identity.adapter, path);
  return {
    step,
    totalSteps,
    taskType: config.taskType ?? taskType,
    config,
    baseModel: identity.baseModel,
    dtype: identity.dtype,
    onResidual: Object.hasOwn(identity, 'residualTeacher'),
    onQuantized: Object.hasOwn(identity, 'quantizedTeacher'),
  };
}

function parsed(text: string, path: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new FormatError(`${path}: is not JSON: ${(error as Error).message}`, { path });
  }
}

/** The configuration in a run's identity. A start function is named by a digest; its pairs are in the checkpoint. */
function configOf(identity: Readonly<Record<string, unknown>>, path: string): LoraConfig {
  const { initLoraWeights: init } = identity;
  const isFunction = typeof init === 'string' && init.startsWith('function ');
  try {
    return loraConfig(isFunction ? { ...identity, initLoraWeights: true } : identity);
  } catch (error) {
    if (!(error instanceof ArgumentError)) throw error;
    throw new FormatError(`${path}: identity.adapter: ${error.message}`, { path });
  }
}

/** Reads the adapter in a checkpoint. @throws as readSavedRun(), and FormatError for tensors that make no adapter */
export async function readCheckpointFolder(
  folder: string,
  { device }: { device?: string } = {},
): Promise<CheckpointFolder> {
  const checked = await CheckedFolder.open(folder);
  const checkpoint = await savedRunOf(checked);
  const { config } = checkpoint;
  const path = join(folder, CHECKPOINT_FILES.tensors);
  const tensors = await tunedTensors(checked, device);
  return disposeOnError(tensors.values(), () => {
    const parts = partsOf(tensors, { config, path });
    return { config, ...parts, path, metadata: {}, warnings: [], checkpoint };
  });
}

/** Assigns the tensors of a checkpoint to modules. @throws FormatError for tensors that make no adapter */
function partsOf(
  tensors: ReadonlyMap<string, Tensor>,
  { config, path }: { config: LoraConfig; path: string },
): Required<Pick<CheckpointFolder, 'modules' | 'shared' | 'saved' | 'firstPairs' | 'lessPairs'>> {
  const variant = variantOf(config);
  const settings = { ...config };
  const keys = [...tensorsOf(variant, settings), ...VARIANT_PARAMETERS].map(({ key }) => key);
  const sharedKeys = new Set(variant.type.shared.map(({ key }) => key));
  const shared = new Map<string, Tensor>();
  const found = new Map<string, Map<string, Tensor>>();
  const first = new Map<string, Map<string, Tensor>>();
  const less = new Map<string, Map<string, Tensor>>();
  const saved = new Map<string, Tensor>();
  for (const [name, tensor] of tensors) {
    if (sharedKeys.has(name)) {
      shared.set(name, tensor);
      continue;
    }
    const places = [
      [first, Object.values(FIRST_KEYS)],
      [less, Object.values(LESS_KEYS)],
      [found, keys],
    ] as const;
    const place = places.find(([, known]) => parameterOf(name, known) !== null);
    if (place === undefined) saved.set(name, tensor);
    else {
      const [parts, known] = place;
      const { module, key } = parameterOf(name, known) as { module: string; key: string };
      parts.set(module, (parts.get(module) ?? new Map()).set(key, tensor));
    }
  }
  for (const [name, parts] of found) checkModule(name, parts, { variant, settings, path });
  const pairs = (of: typeof first, keys: PairKeys): Map<string, LowRankPair> =>
    new Map(Array.from(of, ([name, parts]) => [name, pairOf(name, parts, { of: keys, path })]));
  const firstPairs = pairs(first, FIRST_KEYS);
  return { modules: found, shared, saved, firstPairs, lessPairs: pairs(less, LESS_KEYS) };
}

/** The tensors of the tuned model in a checkpoint's file, without the optimiser's, by their names in its state. */
async function tunedTensors(
  checked: CheckedFolder,
  device: string | undefined,
): Promise<ReadonlyMap<string, Tensor>> {
  const file = await checked.openTensors(CHECKPOINT_FILES.tensors);
  try {
    const names = [...file.tensors.keys()].filter((name) => name.startsWith(TUNED_PREFIX));
    const options = { checkFinite: true, device };
    const tensors = new Map(
      names.map((name) => [name.slice(TUNED_PREFIX.length), file.read(name, options)]),
    );
    await disposeOnError(tensors.values(), () => synchronize());
    return tensors;
  } finally {
    file.close();
  }
}

/** Shape of a parameter that the adapter in a checkpoint saves whole, by its path in the model; null: it saves no such parameter. */
export function checkpointShape(folder: string, name: string): readonly number[] | null {
  const file = SafetensorsFile.open(join(folder, CHECKPOINT_FILES.tensors));
  try {
    return file.tensors.get(TUNED_PREFIX + name)?.shape ?? null;
  } finally {
    file.close();
  }
}

/** The module that a tensor belongs to, and which of `keys` it has there; null: it has none of them. */
function parameterOf(
  name: string,
  keys: readonly string[],
): { module: string; key: string } | null {
  for (const key of keys) {
    const end = stateName('', key);
    if (name.endsWith(end)) return { module: name.slice(0, -end.length), key };
  }
  return null;
}

/** Names of the two tensors of a pair. */
type PairKeys = Readonly<Record<keyof LowRankPair, string>>;

function pairOf(
  name: string,
  parts: ReadonlyMap<string, Tensor>,
  { of, path }: { of: PairKeys; path: string },
): LowRankPair {
  const [a, b] = [parts.get(of.a), parts.get(of.b)];
  if (a !== undefined && b !== undefined) return { a, b };
  throw new FormatError(`${path}: ${name} has one of its first factors and lacks the other`, {
    path,
  });
}

/**
 * Compares a model with the base of a checkpoint.
 * @returns warnings for the user
 * @throws ArgumentError for an adapter on a residual, if the model is not that residual
 */
export async function checkSavedBase(
  model: Model,
  { baseModel, dtype, onResidual, onQuantized }: SavedRun,
  { folder, allowOtherBase }: BaseCheck,
): Promise<string[]> {
  const now = baseSummary(model, await baseDigest(model));
  if (now === baseModel && onQuantized && dtype !== model.dtype) {
    const fact = `${folder}: the adapter was trained on codes made of the base in ${dtype}, and this model is in ${model.dtype}`;
    if (allowOtherBase) return [fact];
    throw new ArgumentError(`${fact}; load the model in ${dtype}, or pass allowOtherBase: true`);
  }
  if (now === baseModel) return [];
  const place = model.folder === '' ? model.nameOrPath : model.folder;
  const fact = `${folder}: the adapter was trained on another base: ${place} is "${now}", and that was "${baseModel}"`;
  if (allowOtherBase || !(onResidual || onQuantized)) return [fact];
  if (onQuantized) {
    throw new ArgumentError(
      `${fact}; it is used on codes that are made of that one: give that one, or pass allowOtherBase: true`,
    );
  }
  throw new ArgumentError(
    `${fact}; it is a pair on a residual, and means nothing on another model: give that one, or pass allowOtherBase: true`,
  );
}
