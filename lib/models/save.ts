/** Saving of a model as a Hugging Face folder: config.json, model.safetensors, and the tokenizer's files of its source. */
import { existsSync, statSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { makeFolder, writeFileAtomic } from '../io/files.ts';
import { SafetensorsWriter, type TensorSpec } from '../io/index.ts';
import { COMPANIONS, SINGLE_WEIGHTS } from '../io/model_folder.ts';
import { readBytes } from '../io/regular_file.ts';
import { Conv1D } from '../nn/index.ts';
import { contiguous, transpose } from '../ops/index.ts';
import { synchronize } from '../runtime.ts';
import { scope, type Tensor } from '../tensor.ts';
import type { Model } from './model.ts';

/** Options of {@link saveModel}. */
export interface SaveModelOptions {
  /**
   * Returns a tensor of the same shape and dtype to write in place of a weight, or null for the weight itself. Called in the
   * order of the parameters; the tensor is disposed of once it is written.
   */
  replace?: (name: string, weight: Tensor) => Tensor | null;
}

/**
 * Writes a model in its own dtype; the weights appear whole or not at all. At most one replaced tensor is alive at a time.
 * @throws NativeError with sizes when the disk is full
 */
export async function saveModel(
  model: Model,
  folder: string,
  { replace }: SaveModelOptions = {},
): Promise<void> {
  const parameters = [...model.namedParameters()];
  const transposed = transposedWeights(model);
  const specs: Record<string, TensorSpec> = Object.fromEntries(
    parameters.map(([name, weight]) => {
      const { dtype, shape } = weight;
      return [name, { dtype, shape: transposed.has(weight) ? [...shape].reverse() : shape }];
    }),
  );
  const config = `${JSON.stringify(model.configJson(), null, 2)}\n`;
  await makeFolder(folder);
  const writer = new SafetensorsWriter(join(folder, SINGLE_WEIGHTS), specs, { format: 'pt' });
  try {
    for (const [name, weight] of parameters) {
      const replacement = replace?.(name, weight) ?? null;
      const values = replacement ?? weight;
      scope(() => {
        writer.write(
          name,
          transposed.has(weight) ? contiguous(transpose(values.detach())) : values,
        );
      });
      replacement?.dispose();
      await synchronize();
    }
    await writer.commit();
  } catch (error) {
    writer.abandon();
    throw error;
  }
  await writeFileAtomic(join(folder, 'config.json'), config);
  await copyCompanions(model.folder, folder);
}

/** Weights that checkpoints store as (in,out). */
function transposedWeights(model: Model): ReadonlySet<Tensor> {
  const modules = Array.from(model.namedModules(), ([, module]) => module);
  return new Set(modules.flatMap((module) => (module instanceof Conv1D ? [module.weight] : [])));
}

async function copyCompanions(from: string, to: string): Promise<void> {
  if (!existsSync(from) || !statSync(from).isDirectory() || resolve(from) === resolve(to)) return;
  for (const name of COMPANIONS) {
    if (!existsSync(join(from, name))) continue;
    await writeFileAtomic(join(to, name), await readBytes(join(from, name)));
  }
}
