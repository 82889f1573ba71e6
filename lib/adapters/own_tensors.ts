/** The tensors of an adapter by its type: first values, and checks of those that were read from a file. */
import { createHash } from 'node:crypto';
import { withDevice } from '../device.ts';
import { ArgumentError, FormatError } from '../errors.ts';
import type { Linear } from '../nn/linear.ts';
import { zeros } from '../ops/index.ts';
import { computeOwned, scope, type Tensor } from '../tensor.ts';
import { kOtherModel, masterOf } from './attach.ts';
import { copyOf } from './copies.ts';
import { masterDType } from './low_rank.ts';
import {
  type AdapterType,
  type ModuleSizes,
  type Settings,
  type SharedContext,
  tensorsOf,
  type Variant,
} from './methods/method.ts';
import { decodedModule, type PairTarget } from './starts.ts';

/** The variant and the settings by which the tensors of all modules are made or checked. */
export interface TensorContext {
  readonly variant: Variant;
  readonly settings: Settings;
}

/** The context of the tensors that the modules of an adapter share. */
export function sharedContext(
  targets: readonly PairTarget[],
  settings: Settings,
  seed: number,
): SharedContext {
  return {
    settings,
    modules: targets.map(sizesOf),
    seed: (purpose) => createHash('sha256').update(`${seed}/${purpose}`).digest().readUIntBE(0, 6),
  };
}

/** First values of the tensors that all modules share. All modules are on one device and in one dtype. */
export function startShared(
  type: AdapterType,
  context: SharedContext,
  [target]: readonly PairTarget[],
): Map<string, Tensor> {
  if (target === undefined) return new Map();
  const { weight } = target.linear;
  const dtype = masterDType(weight.dtype);
  const made = withDevice(weight.device, () =>
    computeOwned(() =>
      Object.fromEntries(
        type.shared.map((tensor) => [tensor.key, copyOf(tensor.start(context).to(dtype))]),
      ),
    ),
  );
  return new Map(Object.entries(made));
}

/** First values of the tensors of modules without a pair, in their order, as masters. @throws ArgumentError where none leave the base as it is */
export function startOwn(
  targets: readonly PairTarget[],
  context: TensorContext,
): Map<string, Tensor>[] {
  const { variant, settings } = context;
  const { type } = variant;
  for (const target of targets) {
    const complaint = type.refusesStart(sizesOf(target), settings);
    if (complaint !== null) throw new ArgumentError(`${target.name}: ${complaint}`);
  }
  const first = withDevice(targets[0]?.linear.weight.device, () =>
    computeOwned(() => type.start?.(targets.map(decodedModule), settings) ?? []),
  );
  const masters = targets.map((target, i) =>
    mastersOf(target, new Map(Object.entries(first[i] as Record<string, Tensor>)), context),
  );
  for (const tensors of first) for (const tensor of Object.values(tensors)) tensor.dispose();
  return masters;
}

/**
 * Copies of a module's tensors in the masters' dtype, those that are trained collecting gradients; a state that is not there starts as 0.
 * The given ones stay their owner's.
 */
export function mastersOf(
  target: PairTarget,
  values: ReadonlyMap<string, Tensor>,
  { variant, settings }: TensorContext,
): Map<string, Tensor> {
  const { linear } = target;
  return new Map(
    tensorsOf(variant, settings).map(({ key, trained, shape }) => {
      const { device } = linear.weight;
      const master = scope(() =>
        masterOf(values.get(key) ?? zeros(shape(sizesOf(target)), { device }), linear),
      );
      master.requiresGrad = trained;
      return [key, master];
    }),
  );
}

/** The tensors of a module from those in its file, which stay their owner's. @throws FormatError for tensors that make none */
export function fromFile(
  target: PairTarget,
  values: ReadonlyMap<string, Tensor>,
  { variant, settings, path }: TensorContext & { readonly path: string },
): ReadonlyMap<string, Tensor> {
  try {
    return variant.type.fromFile?.(target, values, settings) ?? values;
  } catch (error) {
    if (!(error instanceof ArgumentError)) throw error;
    throw new FormatError(`${path}: ${error.message}`, { path });
  }
}

/** Checks that a module's tensors fit it. @throws FormatError if one does not */
export function checkShapes(
  target: PairTarget,
  values: ReadonlyMap<string, Tensor>,
  { variant, settings, path }: TensorContext & { readonly path: string },
): void {
  const sizes = sizesOf(target);
  for (const { key, shape, isState } of tensorsOf(variant, settings)) {
    if (isState && !values.has(key)) continue;
    checkShape(`${target.name}: ${key}`, {
      found: values.get(key)?.shape ?? [],
      wanted: shape(sizes),
      path,
    });
  }
}

/**
 * Checks the tensors of a file that all modules share, and makes copies of them in the masters' dtype.
 * @throws FormatError if one is missing or does not fit
 */
export function sharedOf(
  values: ReadonlyMap<string, Tensor>,
  { type, context, linear, path }: SharedFile,
): Map<string, Tensor> {
  for (const { key, shape } of type.shared) {
    const found = values.get(key);
    if (found === undefined) {
      throw new FormatError(
        `${path}: has no base_model.${key}, which all modules share and which a seed of PyTorch's does not restore here`,
        { path, advice: 'save the adapter with save_projection true' },
      );
    }
    checkShape(`base_model.${key}`, { found: found.shape, wanted: shape(context), path });
  }
  const dtype = masterDType(linear.weight.dtype);
  return new Map(
    type.shared.map(({ key }) => [
      key,
      computeOwned(() => copyOf((values.get(key) as Tensor).to(dtype))),
    ]),
  );
}

/** A file whose shared tensors are read. */
interface SharedFile {
  readonly type: AdapterType;
  readonly context: SharedContext;
  /** One of the adapted linears. */
  readonly linear: Linear;
  readonly path: string;
}

function checkShape(
  what: string,
  { found, wanted, path }: { found: readonly number[]; wanted: readonly number[]; path: string },
): void {
  if (found.join() === wanted.join()) return;
  throw new FormatError(
    `${path}: ${what} must have the shape (${wanted.join(',')}) for this model, got (${found.join(',')})`,
    { path, advice: kOtherModel },
  );
}

function sizesOf({ linear, r }: PairTarget): ModuleSizes {
  const { inFeatures, outFeatures } = linear;
  return { inFeatures, outFeatures, r };
}
