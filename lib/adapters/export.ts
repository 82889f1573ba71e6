/**
 * The forms in which an adapter is written: a plain LoRA on the untouched base, or PiSSA's own form, a pair of rank r on a
 * residual model.
 */
import { join } from 'node:path';
import { UnsupportedError } from '../errors.ts';
import { hubIdOf } from '../io/hub/names.ts';
import { type BaseDigest, baseDigest, digestOfFolder } from '../models/base_digest.ts';
import { type Model, saveModel } from '../models/index.ts';
import { Conv1D } from '../nn/linear.ts';
import { add, mul } from '../ops/index.ts';
import { noGrad, scope, type Tensor } from '../tensor.ts';
import type { AdaptedLinear } from './adapted_linear.ts';
import type { ResidualTeacher } from './adapter.ts';
import type { QuantizedForm, ResidualForm } from './adapter_metadata.ts';
import { linearNames } from './attach.ts';
import { convertObstacle } from './changes.ts';
import { hasAlpha, type LoraConfig, loraConfig } from './config.ts';
import { type LowRankPair, productOf, tensorsOfPair } from './low_rank.ts';
import { fileKeys, type Variant } from './methods/method.ts';
import { STARTS_FROM_WEIGHT, scalingOf, typeOf } from './methods/registry.ts';
import {
  type ExportedModule,
  INITIAL_ADAPTER,
  LESS_ADAPTER,
  RESIDUAL_BASE,
  writePeftFolder,
} from './peft_folder.ts';
import { codesDigest } from './quantized_base.ts';
import type { SavedModules } from './saved_modules.ts';

/** The adapter to be written, on its model. */
export interface ExportableAdapter {
  readonly model: Model;
  readonly config: LoraConfig;
  readonly modules: readonly AdaptedLinear[];
  readonly saved: SavedModules | null;
  /** Set where the model is a residual. */
  readonly residual: ResidualTeacher | null;
  /** Whether the adapter is applied in the model's forwards. */
  enabled: boolean;
}

/**
 * Saves the plain form. For a pair it is one on the untouched base, as the variant's `toLora` makes it: with frozen first values
 * [A;A0], [B|-B0], the rank doubled and the scale kept. An adapter of another type has its own tensors there.
 */
export async function savePlain(adapter: ExportableAdapter, folder: string): Promise<void> {
  if (typeOf(adapter.config).pair === undefined) {
    await saveOwn(adapter, folder);
    return;
  }
  const pairs = adapter.modules.map((module) => module.variant.toLora(module));
  try {
    const modules = adapter.modules.map((module, i) =>
      exported(module, pairs[i] as LowRankPair, adapter.config),
    );
    const base = {
      digest: digestOnBase(adapter),
      form: adapter.residual === null ? null : 'residual',
      quantized: quantizedFormOf(adapter),
    } as const;
    await write(adapter, folder, { config: plainConfig(adapter, modules), modules, base });
    for (const [name, pairOf, form] of [
      [INITIAL_ADAPTER, ({ teacher }: AdaptedLinear) => teacher, 'initial'],
      [LESS_ADAPTER, ({ quantized }: AdaptedLinear) => quantized?.own ?? null, null],
    ] as const) {
      const beside = pairModules(adapter, pairOf);
      if (beside.length === 0) continue;
      const config = { ...adapter.config, initLoraWeights: true };
      const { digest } = base;
      await write(adapter, join(folder, name), { config, modules: beside, base: { digest, form } });
    }
  } finally {
    for (const [i, pair] of pairs.entries()) adapter.modules[i]?.release(pair);
  }
}

/** Saves the tensors of an adapter that has no pair A, B, under the keys of its type. */
async function saveOwn(adapter: ExportableAdapter, folder: string): Promise<void> {
  const { variant, settings } = adapter.modules[0] as AdaptedLinear;
  const form = variant.type.toFile?.(adapter.modules);
  const keys = fileKeys(variant, settings);
  const modules = adapter.modules.map(({ name, r, alpha, parameters }, i) => {
    const inFile = (key: string) => (form?.tensors[i]?.[key] ?? parameters.get(key)) as Tensor;
    return { name, r, alpha, tensors: new Map(keys.map((key) => [key, inFile(key)])) };
  });
  const base = { digest: digestOnBase(adapter), form: null };
  const config = { ...adapter.config, ...form?.settings };
  try {
    await write(adapter, folder, { config, modules, base });
  } finally {
    for (const tensors of form?.tensors ?? []) {
      for (const tensor of Object.values(tensors)) tensor.dispose();
    }
  }
}

/**
 * Saves a plain LoRA that computes the same on the untouched base, whatever the method: A' and B' of scale 1 where it has no pair.
 * @throws UnsupportedError for an adapter that no plain LoRA equals
 */
export async function saveAsLora(adapter: ExportableAdapter, folder: string): Promise<void> {
  checkAsLora(adapter);
  if (typeOf(adapter.config).pair !== undefined) await savePlain(adapter, folder);
  else await writeLora(adapter, folder, adapter.modules.map(plainPair));
}

/** A module of a plain LoRA. */
export interface PlainPair {
  readonly name: string;
  readonly pair: LowRankPair;
  readonly scale: number;
}

/** The pair that equals a module's adapter on its own base; `release` of the module frees it. */
export function plainPair(module: AdaptedLinear): PlainPair {
  const { name, scale } = module;
  return { name, scale, pair: module.variant.toLora(module) };
}

/**
 * Writes pairs on the untouched base, in the place of an adapter's own tensors, and frees them.
 * @param rank the rank that the configuration names; others are written as patterns. Default: the adapter's
 */
export async function writeLora(
  adapter: ExportableAdapter,
  folder: string,
  pairs: readonly PlainPair[],
  rank?: number,
): Promise<void> {
  const modules = pairs.flatMap(({ name, pair, scale }) => {
    const r = pair.a.shape[0] as number;
    // A module that has lost its whole rank is the base's.
    return r === 0 ? [] : [{ name, r, alpha: scale * r, tensors: tensorsOfPair(pair) }];
  });
  try {
    const base = { digest: digestOnBase(adapter), form: null };
    const sizes =
      rank === undefined ? {} : { r: rank, loraAlpha: rank, rankPattern: [], alphaPattern: [] };
    await write(adapter, folder, {
      config: { ...asLora(adapter.config), ...sizes },
      modules,
      base,
    });
  } finally {
    for (const { pair } of pairs) for (const tensor of [pair.a, pair.b]) tensor.dispose();
  }
}

/** The reason why no pair A, B on the module's own base computes the same, as a sentence's second half; null: one does. */
export function loraObstacle({ variant, settings }: AdaptedLinear): string | null {
  const { type, option } = variant;
  const keys = variant.parameters.map(({ key }) => key);
  if (keys.length > 0) return `this adapter also trains ${keys.join(', ')} (${option})`;
  const ofType = type.loraObstacle(settings);
  return ofType && `${type.peftType} ${ofType}`;
}

/** Checks that a plain LoRA computes the same as an adapter. @throws UnsupportedError if none does */
export function checkAsLora({ modules }: ExportableAdapter): void {
  for (const module of modules) {
    const obstacle = loraObstacle(module);
    if (obstacle === null) continue;
    const remedy =
      convertObstacle(module) === null
        ? ', and make a plain LoRA of a chosen rank of that (balora convert)'
        : '';
    throw new UnsupportedError(
      `export "plain-lora" is for adapters that a pair A, B equals, and ${obstacle}; export it as "lora"${remedy}`,
    );
  }
}

/** The configuration of the plain LoRA that an adapter of another type is exported as. */
function asLora(config: LoraConfig): LoraConfig {
  const { r, targetModules, modulesToSave, layersToTransform, layersPattern } = config;
  const { loraDropout, excludeModules, rankPattern, taskType, revision } = config;
  const kept = { r, targetModules, modulesToSave, layersToTransform, layersPattern, rankPattern };
  const scaled = hasAlpha(config.peftType);
  const alphas = scaled ? { alphaPattern: config.alphaPattern } : {};
  const loraAlpha = scaled ? config.loraAlpha : r;
  const plain = { ...kept, ...alphas, loraAlpha, loraDropout, excludeModules, taskType, revision };
  return { ...loraConfig(plain), baseModelNameOrPath: config.baseModelNameOrPath };
}

/**
 * Saves the residual form: the pair of rank r, with the model W - s B0 A0 that it belongs on and its first values beside it.
 * @param place the path that the folder will have
 * @throws UnsupportedError for an adapter that has no residual form
 */
export async function saveResidual(
  adapter: ExportableAdapter,
  folder: string,
  place = folder,
): Promise<void> {
  checkResidual(adapter);
  const base = join(folder, RESIDUAL_BASE);
  await onBase(adapter, () =>
    saveModel(adapter.model, base, {
      replace: (name, weight) => residualWeight(adapter, name, weight),
    }),
  );
  const plain = {
    ...adapter.config,
    initLoraWeights: true,
    baseModelNameOrPath: join(place, RESIDUAL_BASE),
  };
  const digest = digestOfFolder(adapter.model, base);
  for (const [to, pairOf, form] of [
    [folder, ({ pair }: AdaptedLinear) => pair, 'residual'],
    [join(folder, INITIAL_ADAPTER), ({ frozen }: AdaptedLinear) => frozen, 'initial'],
  ] as const) {
    const config = { ...plain, inferenceMode: form === 'residual' };
    const written = pairModules(adapter, pairOf);
    await write(adapter, to, { config, modules: written, base: { digest, form } });
  }
}

/** The digest of the base, beginning with the adapter switched off. */
function digestOnBase(adapter: ExportableAdapter): Promise<BaseDigest> {
  const before = adapter.enabled;
  adapter.enabled = false;
  const digest = baseDigest(adapter.model);
  adapter.enabled = before;
  return digest;
}

/** The modules that have a pair of a kind, with that one alone. */
function pairModules(
  { modules }: ExportableAdapter,
  pairOf: (module: AdaptedLinear) => LowRankPair | null,
): ExportedModule[] {
  return modules.flatMap((module) => {
    const { name, r, alpha } = module;
    const pair = pairOf(module);
    return pair === null ? [] : [{ name, r, alpha, tensors: tensorsOfPair(pair) }];
  });
}

/** The form of the adapter's own base, for its file; null: it has none. */
async function quantizedFormOf({
  config,
  modules,
}: ExportableAdapter): Promise<QuantizedForm | null> {
  if (modules.every(({ quantized }) => quantized === null)) return null;
  return { start: String(config.initLoraWeights), digest: await codesDigest(modules) };
}

/** Checks that an adapter has a residual form. @throws UnsupportedError if it has none */
export function checkResidual({ modules }: ExportableAdapter): void {
  if (modules.some(({ frozen }) => frozen === null)) {
    throw new UnsupportedError(
      'export "residual" is for adapters that start from the weights (initLoraWeights ' +
        `${STARTS_FROM_WEIGHT.join(', ')}), and this one has no residual; export it as "lora"`,
    );
  }
  for (const { variant } of modules) {
    const obstacle = variant.residualObstacle ?? ownParameters(variant);
    if (obstacle === null) continue;
    throw new UnsupportedError(`export "residual" is not for ${obstacle}; export it as "lora"`);
  }
}

/** The reason why a variant with trained tensors besides A and B has no residual form, which consists of pairs; null: it has one. */
function ownParameters({ parameters }: Variant): string | null {
  if (parameters.length === 0) return null;
  return `an adapter that trains ${parameters.map(({ key }) => key).join(', ')} besides A and B`;
}

/** A module with the pair to be written; alpha keeps the scale at the pair's rank. */
function exported(module: AdaptedLinear, pair: LowRankPair, config: LoraConfig): ExportedModule {
  const { name, alpha, parameters } = module;
  const r = pair.a.shape[0] as number;
  const tensors = new Map([...parameters, ...tensorsOfPair(pair)]);
  return { name, r, alpha: scalingOf(config).divisor(r / module.r) * alpha, tensors };
}

/**
 * The configuration at the rank that is written, with the alpha that keeps the scale: in plain LoRA with a frozen pair, both alpha
 * and r are doubled.
 */
function plainConfig(
  { config, modules }: ExportableAdapter,
  written: readonly ExportedModule[],
): LoraConfig {
  const growths = new Set(modules.map(({ r }, i) => (written[i] as ExportedModule).r / r));
  const [growth = 1] = growths;
  // Where the ranks of modules grew by different factors, every module is written by name.
  const times = growths.size === 1 ? growth : 1;
  const divisor = scalingOf(config).divisor(times);
  const fromWeight = modules.some(({ frozen }) => frozen !== null);
  return {
    ...config,
    r: times * config.r,
    loraAlpha: divisor * config.loraAlpha,
    rankPattern: config.rankPattern.map(([name, r]) => [name, times * r] as const),
    alphaPattern: config.alphaPattern.map(([name, alpha]) => [name, divisor * alpha] as const),
    initLoraWeights: fromWeight ? true : config.initLoraWeights,
  };
}

/** An adapter's folder that is written. */
interface Written {
  readonly config: LoraConfig;
  readonly modules: readonly ExportedModule[];
  readonly base: {
    readonly digest: Promise<BaseDigest>;
    readonly form: ResidualForm | null;
    readonly quantized?: Promise<QuantizedForm | null>;
  };
}

function write(
  adapter: ExportableAdapter,
  folder: string,
  { config, modules, base: { digest, form, quantized } }: Written,
): Promise<void> {
  const { nameOrPath } = adapter.model;
  const baseModelNameOrPath = config.baseModelNameOrPath ?? hubIdOf(nameOrPath) ?? nameOrPath;
  const named = {
    ...config,
    baseModelNameOrPath,
    taskType: config.taskType ?? adapter.model.taskType,
    // PEFT's key for the layout of the base's weights; A and B are not affected.
    fanInFanOut: adapter.modules.some(({ linear }) => linear instanceof Conv1D),
  };
  const saved = adapter.saved?.parameters ?? [];
  const base = Promise.all([digest, quantized]).then(([known, own = null]) => ({
    digest: known,
    form,
    quantized: own,
  }));
  base.catch(() => {}); // it is awaited below, unless something else fails first
  // A plain LoRA that is made of another type has none of its shared tensors.
  const shared = typeOf(config).pair === undefined ? adapter.modules[0]?.sharedTensors : undefined;
  const parts = { modules, saved, base, shared };
  return writePeftFolder(folder, named, parts, linearNames(adapter.model));
}

/** Runs `body` with the adapter switched off, so that modules saved whole are the base's. */
async function onBase(adapter: ExportableAdapter, body: () => Promise<void>): Promise<void> {
  const before = adapter.enabled;
  adapter.enabled = false;
  try {
    await body();
  } finally {
    adapter.enabled = before;
  }
}

/** The residual weight W - s B0 A0, rounded once; null for a tensor that no adapter changes. */
function residualWeight(adapter: ExportableAdapter, name: string, weight: Tensor): Tensor | null {
  const module = adapter.modules.find((one) => `${one.name}.weight` === name);
  if (!module?.frozen) return null;
  const { frozen, scale, quantized } = module;
  if (quantized !== null) return scope(() => quantized.weight.to(weight.dtype));
  return scope(() =>
    noGrad(() => add(weight.to('f64'), mul(productOf(frozen), -scale)).to(weight.dtype)),
  );
}
