/**
 * Adapters as mlx-lm stores them, read as if they were a PEFT folder: adapters.safetensors holds `<path>.lora_a` (in,r) and `.lora_b`
 * (r,out), and adapter_config.json one rank and scale for all modules (mlx_lm/tuner/lora.py: y = W x + scale lora_b^T lora_a^T x).
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { FormatError, UnsupportedError } from '../errors.ts';
import { readText } from '../io/regular_file.ts';
import { loadSafetensors } from '../io/safetensors.ts';
import { contiguous, transpose } from '../ops/index.ts';
import { computeOwned, type Tensor } from '../tensor.ts';
import { loraConfig } from './config.ts';
import { tensorsOfPair } from './low_rank.ts';
import type { ModuleTensors, PeftFolder } from './peft_folder.ts';

export const MLX_CONFIG = 'adapter_config.json';
export const MLX_TENSORS = 'adapters.safetensors';

/** Whether a folder holds an adapter of mlx-lm. */
export function isMlxFolder(folder: string): boolean {
  return existsSync(join(folder, MLX_TENSORS));
}

const kConfig = z.looseObject({
  fine_tune_type: z.string().default('lora'),
  model: z.string().nullish(),
  lora_parameters: z.looseObject({
    rank: z.int().positive(),
    scale: z.number(),
    dropout: z.number().min(0).lt(1).default(0),
  }),
});

/**
 * Reads an adapter of mlx-lm.
 * @param options device: device of the tensors
 * @throws FormatError for damaged files, UnsupportedError for DoRA and whole models
 */
export async function readMlxFolder(
  folder: string,
  { device }: { device?: string } = {},
): Promise<PeftFolder> {
  const { lora_parameters: parameters, model } = await readConfig(join(folder, MLX_CONFIG));
  const path = join(folder, MLX_TENSORS);
  const { tensors, metadata } = await loadSafetensors(path, { checkFinite: true, device });
  try {
    const modules = modulesOf(tensors, parameters.rank, path);
    const config = loraConfig({
      r: parameters.rank,
      loraAlpha: parameters.scale * parameters.rank,
      loraDropout: parameters.dropout,
      targetModules: [...modules.keys()],
      taskType: 'CAUSAL_LM',
      baseModelNameOrPath: model || undefined,
    });
    return { config, modules, saved: new Map(), path, metadata, warnings: [] };
  } finally {
    for (const tensor of Object.values(tensors)) tensor.dispose();
  }
}

async function readConfig(path: string): Promise<z.infer<typeof kConfig>> {
  let json: unknown;
  try {
    json = JSON.parse(await readText(path));
  } catch (error) {
    throw new FormatError(`${path}: ${(error as Error).message}`, { path });
  }
  const found = kConfig.safeParse(json);
  if (!found.success) {
    const [issue] = found.error.issues as [z.core.$ZodIssue];
    throw new FormatError(`${path}: ${issue.path.join('.')}: ${issue.message}`, { path });
  }
  if (found.data.fine_tune_type === 'lora') return found.data;
  throw new UnsupportedError(
    `${path}: fine_tune_type "${found.data.fine_tune_type}" is not supported; give an adapter of fine_tune_type "lora"`,
  );
}

/** The pairs by module, as copies in PEFT's orientation. */
function modulesOf(
  tensors: Readonly<Record<string, Tensor>>,
  rank: number,
  path: string,
): Map<string, ModuleTensors> {
  const found = new Map<string, { a?: Tensor; b?: Tensor }>();
  for (const [key, tensor] of Object.entries(tensors)) {
    const [, name, which] = /^(.+)\.lora_([ab])$/.exec(key) ?? [];
    if (name === undefined) {
      throw new UnsupportedError(
        `${path}: the tensor "${key}" is not supported; it is no lora_a or lora_b`,
      );
    }
    if (tensor.shape.length !== 2) {
      throw new FormatError(`${path}: ${key} must be a matrix, has the shape (${tensor.shape})`, {
        path,
      });
    }
    found.set(name, { ...found.get(name), [which as 'a' | 'b']: tensor });
  }
  for (const [name, { a, b }] of found) {
    const fits = a !== undefined && b !== undefined && a.shape[1] === rank && b.shape[0] === rank;
    if (fits) continue;
    throw new FormatError(
      `${path}: ${name} must have a lora_a (in,${rank}) and a lora_b (${rank},out), as its ${MLX_CONFIG} says`,
      { path },
    );
  }
  if (found.size === 0) throw new FormatError(`${path}: holds no LoRA tensor`, { path });
  return new Map(
    Array.from(found, ([name, { a, b }]) => [
      name,
      tensorsOfPair({ a: turned(a as Tensor), b: turned(b as Tensor) }),
    ]),
  );
}

const turned = (matrix: Tensor): Tensor => computeOwned(() => contiguous(transpose(matrix)));
