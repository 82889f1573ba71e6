/**
 * PEFT adapter folders: adapter_config.json and adapter_model.safetensors, in and out. Tensors are f32 whatever the
 * base is stored in, under `base_model.model.<module>.lora_A.weight` and `.lora_B.weight`.
 */
import { mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { FormatError, UnsupportedError } from '../errors.ts';
import { writeFileAtomic } from '../io/files.ts';
import { loadSafetensors, saveSafetensors } from '../io/safetensors.ts';
import type { Tensor } from '../tensor.ts';
import { formatAdapterConfig, type LoraConfig, parseAdapterConfig } from './config.ts';
import type { LowRankPair } from './init.ts';
import { moduleSettings, shortestNames } from './targets.ts';

export const ADAPTER_CONFIG = 'adapter_config.json';
export const ADAPTER_TENSORS = 'adapter_model.safetensors';

const kPrefix = 'base_model.model.';
/** `default` is the adapter's name in a state dict that was not saved through save_pretrained. */
const kKey = /^(?:base_model\.model\.)?(.+)\.lora_(A|B)(?:\.default)?\.weight$/;

/** One module's part of an adapter that is to be written. */
export interface ExportedModule {
  readonly name: string;
  readonly pair: LowRankPair;
  readonly alpha: number;
}

/** Config and pairs, in the order of the file. */
export async function readPeftFolder(
  folder: string,
  options: { ignoreKeys?: readonly string[] } = {},
): Promise<{ config: LoraConfig; pairs: Map<string, LowRankPair> }> {
  const configPath = join(folder, ADAPTER_CONFIG);
  const config = parseAdapterConfig(await readText(configPath), { path: configPath, ...options });
  const path = join(folder, ADAPTER_TENSORS);
  const pairs = new Map<string, { a?: Tensor; b?: Tensor }>();
  const { tensors } = await loadSafetensors(path);
  for (const [key, tensor] of Object.entries(tensors)) {
    const match = kKey.exec(key);
    if (match === null)
      throw new UnsupportedError(`${path}: the tensor "${key}" is not supported yet`);
    const [, name, half] = match as unknown as [string, string, 'A' | 'B'];
    const pair = pairs.get(name) ?? {};
    pair[half === 'A' ? 'a' : 'b'] = tensor;
    pairs.set(name, pair);
  }
  if (pairs.size === 0) throw new FormatError(`${path}: holds no LoRA tensor`, { path });
  for (const [name, pair] of pairs) checkPair(name, pair, path);
  return { config, pairs: pairs as Map<string, LowRankPair> };
}

/** Writes the two files. Ranks and alphas that differ between modules become patterns of full names. */
export async function writePeftFolder(
  folder: string,
  config: LoraConfig,
  modules: readonly ExportedModule[],
  allLinears: readonly string[],
): Promise<void> {
  await mkdir(folder, { recursive: true });
  const tensors: Record<string, Tensor> = {};
  for (const { name, pair } of modules) {
    tensors[`${kPrefix}${name}.lora_A.weight`] = pair.a;
    tensors[`${kPrefix}${name}.lora_B.weight`] = pair.b;
  }
  await saveSafetensors(join(folder, ADAPTER_TENSORS), tensors, { format: 'pt' });
  const text = formatAdapterConfig(configOf(config, modules, allLinears));
  await writeFileAtomic(join(folder, ADAPTER_CONFIG), text);
}

/**
 * The config to write for these modules. PEFT sorts pattern keys on saving, so patterns that overlap may change their
 * meaning; the caller's are kept where the sorted ones still say the same, else every module gets its full name.
 */
export function configOf(
  config: LoraConfig,
  modules: readonly ExportedModule[],
  allLinears: readonly string[],
): LoraConfig {
  const named =
    typeof config.targetModules === 'string' && config.targetModules === 'all-linear'
      ? {
          ...config,
          targetModules: shortestNames(
            modules.map(({ name }) => name),
            allLinears,
          ),
        }
      : config;
  const sorted = {
    ...named,
    rankPattern: sortedPattern(config.rankPattern),
    alphaPattern: sortedPattern(config.alphaPattern),
  };
  const settings = moduleSettings(sorted);
  const same = modules.every(({ name, pair, alpha }) => {
    const { r, alpha: written } = settings(name);
    return r === pair.a.shape[0] && Math.abs(written - alpha) <= 1e-12 * Math.abs(alpha);
  });
  if (same) return sorted;
  const full = <T>(value: (module: ExportedModule) => T, fallback: T) =>
    modules
      .filter((module) => value(module) !== fallback)
      .map((module) => [escapeName(module.name), value(module)] as const);
  return {
    ...named,
    rankPattern: sortedPattern(full(({ pair }) => pair.a.shape[0] as number, config.r)),
    alphaPattern: sortedPattern(full(({ alpha }) => alpha, config.loraAlpha)),
  };
}

function sortedPattern(pattern: LoraConfig['rankPattern']): LoraConfig['rankPattern'] {
  return [...pattern].sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0));
}

/** Patterns are regular expressions: a dot in a path would match anything. PEFT itself writes paths bare. */
function escapeName(name: string): string {
  return name;
}

function checkPair(name: string, { a, b }: { a?: Tensor; b?: Tensor }, path: string): void {
  const missing = a === undefined ? 'lora_A' : b === undefined ? 'lora_B' : null;
  if (missing !== null) throw new FormatError(`${path}: ${name} has no ${missing}`, { path });
  const [shapeA, shapeB] = [(a as Tensor).shape, (b as Tensor).shape];
  if (shapeA.length !== 2 || shapeB.length !== 2 || shapeA[0] !== shapeB[1]) {
    throw new FormatError(
      `${path}: ${name}: lora_A (r,in)=(${shapeA.join(',')}) and lora_B (out,r)=(${shapeB.join(',')}) do not fit`,
      { path },
    );
  }
}

async function readText(path: string): Promise<string> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    throw new FormatError(`${path}: ${(error as Error).message}`, { path, cause: error });
  }
}
