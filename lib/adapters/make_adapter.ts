/** Fresh adapters, and adapters out of PEFT folders. The model must stand as the base while one is made. */
import type { Model } from '../models/index.ts';
import type { Linear } from '../nn/linear.ts';
import { matmul, mul, square, sum } from '../ops/index.ts';
import { synchronize } from '../runtime.ts';
import { noGrad, scope, type Tensor, unscoped } from '../tensor.ts';
import { Adapter } from './adapter.ts';
import {
  checkShapes,
  freezeBase,
  initialPairs,
  linearNamed,
  linearsOf,
  masterOf,
  type NamedLinear,
  refuseHead,
  trainablePair,
} from './attach.ts';
import {
  keepsBase,
  type LoraConfig,
  type LoraConfigInput,
  loraConfig,
  loraScale,
} from './config.ts';
import type { InitialPair, LowRankPair } from './init.ts';
import { LoraModule, type LoraParts, lowRankParts, type Power } from './lora_module.ts';
import { readPeftFolder } from './peft_folder.ts';
import { CLASSIFIER_MODULES, isSaved, SavedModules } from './saved_modules.ts';
import { isSelected, moduleSettings, resolveTargets } from './targets.ts';
import { type Variant, type VariantInput, variantOf } from './variants.ts';

/** Options of {@link AdapterModel.create}. */
export interface CreateOptions {
  /** Of the adapter's first values and its dropout (default 42). */
  seed?: number;
  /** By which {@link AdapterModel.use} finds it (default "default"). */
  name?: string;
}

/** Options of {@link AdapterModel.load}. */
export interface LoadOptions extends CreateOptions {
  /** Keys of adapter_config.json that the caller knows to be harmless although they are not understood. */
  ignoreKeys?: readonly string[];
}

export const DEFAULT_ADAPTER = 'default';
const kSeed = 42;
const kBatch = 64;
const kNamesShown = 3;

/** @throws ArgumentError if targets or modules to save match nothing, or a rank exceeds a matrix */
export async function createAdapter(
  model: Model,
  input: LoraConfigInput,
  { seed = kSeed, name: adapterName = DEFAULT_ADAPTER }: CreateOptions,
): Promise<Adapter> {
  const config = withHead(model, loraConfig(input));
  const variant = variantOf(config);
  freezeBase(model);
  const saved = config.modulesToSave && new SavedModules(model, config.modulesToSave);
  const linears = linearsOf(model).filter(({ name }) => !isSaved(name, config.modulesToSave));
  const targets = resolveTargets(config, linears);
  for (const { name } of targets) refuseHead(model, name);
  const power: Power = { on: false, pass: null, dropout: config.loraDropout, seed };
  const modules: LoraModule[] = [];
  for (const batch of batchesOf(targets)) {
    const found = batch.map((target) => ({
      ...target,
      seed,
      linear: linearNamed(linears, target.name, 'targetModules'),
    }));
    const initial = initialPairs(config, found);
    for (const [i, { name, linear, scale, alpha }] of found.entries()) {
      const first = initial[i] as InitialPair;
      const pair = trainablePair(first, linear);
      const frozen = first.fromWeight ? first : null;
      if (frozen === null) for (const tensor of [first.a, first.b]) tensor.dispose();
      const isChange = mayRound(config) && !first.fromWeight;
      const base = { name, linear, pair, frozen, isChange, scale, alpha, variant };
      modules.push(new LoraModule({ ...base, extra: startOf(variant, base) }, power));
    }
    await synchronize();
  }
  return new Adapter(adapterName, { config, modules, saved, power, warnings: [] });
}

/**
 * The adapter of a PEFT folder. Ranks come from the tensors; every tensor must find its module.
 * @throws FormatError, UnsupportedError for a folder that cannot be understood whole
 */
export async function loadAdapter(
  model: Model,
  folder: string,
  { seed = kSeed, name: adapterName = DEFAULT_ADAPTER, ...options }: LoadOptions,
): Promise<Adapter> {
  const read = await readPeftFolder(folder, { ...options, device: model.device });
  const { config, modules: found, saved: values, path } = read;
  const plain = keepsBase(config.initLoraWeights);
  const variant = variantOf(config);
  freezeBase(model);
  const names = config.modulesToSave ?? (values.size > 0 ? CLASSIFIER_MODULES : null);
  const saved = names && new SavedModules(model, names, { tensors: values, path });
  for (const tensor of values.values()) tensor.dispose();
  const linears = linearsOf(model);
  const settings = moduleSettings(config);
  const power: Power = { on: false, pass: null, dropout: config.loraDropout, seed };
  const modules: LoraModule[] = [];
  for (const batch of batchesOf([...found])) {
    const targets = batch.map(([name, { pair: loaded, extra: value }]) => {
      const linear = linearNamed(linears, name, folder);
      refuseHead(model, name);
      checkShapes({ name, pair: loaded, extra: value }, linear, folder);
      const { alpha } = settings(name);
      const r = loaded.a.shape[0] as number;
      const scale = loraScale(alpha, r, config.useRslora);
      return { name, linear, alpha, r, scale, seed, loaded, value };
    });
    const initial = plain ? [] : initialPairs(config, targets);
    for (const [i, { name, linear, scale, alpha, loaded, value }] of targets.entries()) {
      const pair = trainablePair(loaded, linear);
      const extra = value && masterOf(value, linear);
      for (const tensor of [loaded.a, loaded.b, value]) tensor?.dispose();
      const frozen = initial[i] ?? null;
      const isChange =
        mayRound(config) && frozen === null && (await isSmallSum(pair, linear, scale));
      const base = { name, linear, pair, frozen, isChange, scale, alpha };
      modules.push(new LoraModule({ ...base, variant, extra }, power));
    }
    await synchronize();
  }
  const missing = missingWarning(
    config,
    linears.filter(({ name }) => !found.has(name) && !isSaved(name, names)),
    path,
  );
  const warnings = [...(plain ? [] : [residualWarning(config, folder)]), ...missing];
  return new Adapter(adapterName, { config, modules, saved, power, warnings });
}

/** Whether pairs may be multiplied as a change of the base: DoRA's magnitude has a gradient of the whole sum, pair included. */
const mayRound = ({ useDora }: LoraConfig): boolean => !useDora;

/** Norm of B A over that of its R terms, below which these cancel; where they are independent it is 1. */
const kCancelled = 0.25;
/** Norm of s B A over that of its base, above which it is no mere change of it. */
const kSmall = 0.25;

/**
 * Whether s B A is small beside its base and no difference of large terms. A folder does not say what its pair began as: one
 * that was exported from PiSSA holds B A - B0 A0, which is small beside either, or belongs on a residual and holds the largest
 * part of the weight.
 */
async function isSmallSum(
  { a, b }: LowRankPair,
  { weight }: Linear,
  scale: number,
): Promise<boolean> {
  const norms = scope(() =>
    noGrad(() => [
      // |B A|^2 is the sum of (A A^T) * (B^T B), whose diagonal holds the squares of the terms.
      sum(mul(matmul(a, a, { transposeB: true }), matmul(b, b, { transposeA: true }))),
      sum(mul(sum(square(a), { axis: 1 }), sum(square(b), { axis: 0 }))),
      sum(square(weight.to(a.dtype))),
    ]),
  ) as [Tensor, Tensor, Tensor];
  const [product, apart, base] = (await Promise.all(norms.map((norm) => norm.item()))) as [
    number,
    number,
    number,
  ];
  for (const norm of norms) norm.dispose();
  return product >= kCancelled ** 2 * apart && scale ** 2 * product <= kSmall ** 2 * base;
}

/** Modules whose pairs are made at once: enough for all threads, few enough to leave the event loop its turns. */
function* batchesOf<T>(all: readonly T[]): Generator<T[]> {
  for (let first = 0; first < all.length; first += kBatch) yield all.slice(first, first + kBatch);
}

/** A classifier's head is trained with the adapter, and listed as PEFT lists it. */
function withHead(model: Model, config: LoraConfig): LoraConfig {
  if (model.taskType !== 'SEQ_CLS') return config;
  const given =
    config.modulesToSave ?? model.headPaths.filter((path) => !CLASSIFIER_MODULES.includes(path));
  return { ...config, modulesToSave: [...given, ...CLASSIFIER_MODULES] };
}

function startOf(variant: Variant, module: Omit<LoraParts, 'extra'>): Tensor | null {
  if (variant.extraKey === null) return null;
  const { name, linear, pair, frozen, scale } = module;
  const input: VariantInput = { name, linear, scale, parts: lowRankParts(pair, frozen, scale) };
  const extra = unscoped(() => noGrad(() => variant.start(input)));
  extra.requiresGrad = true;
  return extra;
}

function residualWarning(config: LoraConfig, folder: string): string {
  return (
    `${folder}: the adapter was saved as initLoraWeights "${String(config.initLoraWeights)}", so it belongs on a residual ` +
    'that is computed again from this base, as PEFT does; export it as a plain LoRA to be independent of that'
  );
}

/** What a folder's configuration selects and its file does not have, as one warning or none. PEFT warns of it, too. */
function missingWarning(
  config: LoraConfig,
  without: readonly NamedLinear[],
  path: string,
): string[] {
  let missing: string[];
  try {
    missing = without.filter(isSelected(config)).map(({ name }) => name);
  } catch (error) {
    // An expression that only Python understands: the file's own names say what is adapted.
    return [`${path}: not known whether it lacks modules: ${(error as Error).message}`];
  }
  if (missing.length === 0) return [];
  const more = missing.length > kNamesShown ? ', ...' : '';
  return [
    `${path}: no tensors for ${missing.length} of the modules that target_modules selects ` +
      `(${missing.slice(0, kNamesShown).join(', ')}${more}): these stay as in the base`,
  ];
}
