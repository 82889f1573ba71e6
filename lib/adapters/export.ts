/**
 * What leaves an adapter: a plain LoRA on the untouched base, or PiSSA's own form, a pair of rank r on a residual model.
 */
import { join } from 'node:path';
import { UnsupportedError } from '../errors.ts';
import { type Model, saveModel } from '../models/index.ts';
import { Conv1D } from '../nn/linear.ts';
import { add, concat, mul, neg } from '../ops/index.ts';
import { noGrad, scope, type Tensor } from '../tensor.ts';
import type { AdapterModel, LoraModule } from './adapter_model.ts';
import { linearNames } from './attach.ts';
import type { LoraConfig } from './config.ts';
import { productOf } from './merge.ts';
import { type ExportedModule, writePeftFolder } from './peft_folder.ts';

/** Where the residual form puts its base, and the pair as it was before training (PEFT's `pissa_init`). */
export const RESIDUAL_BASE = 'residual';
export const INITIAL_ADAPTER = 'initial';

/** One pair on the untouched base. With frozen first values: [A;A0], [B|-B0], the rank doubled and the scale kept. */
export async function savePlain(adapter: AdapterModel<Model>, folder: string): Promise<void> {
  const doubled = adapter.modules.some(({ frozen }) => frozen !== null);
  const config = doubled ? doubledConfig(adapter.config) : adapter.config;
  const modules = adapter.modules.map((module) => plainModule(module, adapter.config.useRslora));
  try {
    await write(adapter, folder, config, modules);
  } finally {
    if (doubled) for (const { pair } of modules) disposePair(pair);
  }
}

/**
 * The pair of rank r, with the model W - s B0 A0 that it belongs on and its first values beside it.
 * @throws UnsupportedError for an adapter that did not start from its weights
 */
export async function saveResidual(adapter: AdapterModel<Model>, folder: string): Promise<void> {
  checkResidual(adapter);
  const { modules, config } = adapter;
  const base = join(folder, RESIDUAL_BASE);
  await onBase(adapter, () =>
    saveModel(adapter.model, base, {
      replace: (name, weight) => residualWeight(adapter, name, weight),
    }),
  );
  const plain = { ...config, initLoraWeights: true, baseModelNameOrPath: base };
  const trained = modules.map(({ name, pair, alpha }) => ({ name, pair, alpha }));
  const first = modules.map(({ name, frozen, alpha }) => ({
    name,
    pair: frozen as LoraModule['pair'],
    alpha,
  }));
  await write(adapter, folder, { ...plain, inferenceMode: true }, trained);
  await write(adapter, join(folder, INITIAL_ADAPTER), { ...plain, inferenceMode: false }, first);
}

/** @throws UnsupportedError for an adapter that has no residual form */
export function checkResidual({ modules, config }: AdapterModel<Model>): void {
  if (modules.some(({ frozen }) => frozen === null)) {
    throw new UnsupportedError('export "residual" is for PiSSA adapters: this one has no residual');
  }
  if (config.useDora) {
    throw new UnsupportedError(
      'export "residual" is not for DoRA: its norm belongs to the whole weight, export it as "lora"',
    );
  }
}

/** alpha/r stays with both doubled; alpha/sqrt(r) with alpha times sqrt(2). */
export function doubledConfig(config: LoraConfig): LoraConfig {
  const growth = alphaGrowth(config.useRslora);
  return {
    ...config,
    r: 2 * config.r,
    loraAlpha: growth * config.loraAlpha,
    rankPattern: config.rankPattern.map(([name, r]) => [name, 2 * r] as const),
    alphaPattern: config.alphaPattern.map(([name, alpha]) => [name, growth * alpha] as const),
    initLoraWeights: true,
  };
}

/** A module as a plain pair: its own tensors, or new ones of rank 2r. */
export function plainModule(module: LoraModule, useRslora: boolean): ExportedModule {
  const { name, pair, frozen, alpha, extra, extraKey } = module;
  const beside =
    extra === null || extraKey === null ? {} : { extra: { key: extraKey, tensor: extra } };
  if (frozen === null) return { name, pair, alpha, ...beside };
  const doubled = scope(() =>
    noGrad(() => ({
      a: concat([pair.a, frozen.a], 0),
      b: concat([pair.b, neg(frozen.b)], 1),
    })),
  );
  return { name, pair: doubled, alpha: alphaGrowth(useRslora) * alpha, ...beside };
}

function alphaGrowth(useRslora: boolean): number {
  return useRslora ? Math.SQRT2 : 2;
}

function write(
  adapter: AdapterModel<Model>,
  folder: string,
  config: LoraConfig,
  modules: readonly ExportedModule[],
): Promise<void> {
  const baseModelNameOrPath = config.baseModelNameOrPath ?? adapter.model.nameOrPath;
  const named = {
    ...config,
    baseModelNameOrPath,
    taskType: config.taskType ?? adapter.model.taskType,
    // PEFT's word for the layout of the base's weights; A and B are not affected.
    fanInFanOut: adapter.modules.some(({ linear }) => linear instanceof Conv1D),
  };
  const saved = adapter.saved?.parameters ?? [];
  return writePeftFolder(folder, named, { modules, saved }, linearNames(adapter.model));
}

/** With the adapter switched off, so that modules saved whole are the base's. */
async function onBase(adapter: AdapterModel<Model>, body: () => Promise<void>): Promise<void> {
  const before = adapter.enabled;
  adapter.enabled = false;
  try {
    await body();
  } finally {
    adapter.enabled = before;
  }
}

/** W - s B0 A0, rounded once; null for a tensor that no adapter touches. */
function residualWeight(adapter: AdapterModel<Model>, name: string, weight: Tensor): Tensor | null {
  const module = adapter.modules.find((one) => `${one.name}.weight` === name);
  if (!module?.frozen) return null;
  const { frozen, scale } = module;
  return scope(() =>
    noGrad(() => add(weight.to('f64'), mul(productOf(frozen), -scale)).to(weight.dtype)),
  );
}

function disposePair({ a, b }: { a: Tensor; b: Tensor }): void {
  a.dispose();
  b.dispose();
}
