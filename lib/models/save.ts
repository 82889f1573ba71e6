/** Saving of a model as a Hugging Face folder: config.json, model.safetensors, and the tokenizer's files of its source. */
import { existsSync, statSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { ArgumentError } from '../errors.ts';
import { makeFolder, writeFileAtomic } from '../io/files.ts';
import { SafetensorsWriter, type TensorSpec } from '../io/index.ts';
import { COMPANIONS, SINGLE_WEIGHTS } from '../io/model_folder.ts';
import { readBytes } from '../io/regular_file.ts';
import { Conv1D } from '../nn/index.ts';
import { abs, contiguous, max, transpose } from '../ops/index.ts';
import {
  type CallTable,
  checkArgument,
  checkCall,
  instanceOf,
  kCall,
  oneOf,
} from '../options/call.ts';
import { synchronize } from '../runtime.ts';
import { shown } from '../shown.ts';
import { noGrad, scope, Tensor } from '../tensor.ts';
import { DTYPE_NAMES, Model } from './model.ts';

/** Options of {@link saveModel}. */
export interface SaveModelOptions {
  /** Type of the weights in the file. Default: the model's own. */
  dtype?: SavedDType;
  /**
   * Returns a tensor of the same shape to write in place of a weight, or null for the weight itself. Called in the order of the
   * parameters; the tensor is converted to the file's dtype, and disposed of once it is written.
   */
  replace?: (name: string, weight: Tensor) => Tensor | null;
}

/** Types in which a model's weights are written. */
export type SavedDType = 'f32' | 'bf16' | 'f16' | 'f64';

/** The types in which weights are written, and what the options must be. */
export const kSavedDType = oneOf(['f32', 'bf16', 'f16', 'f64']);
const kModel = instanceOf(Model, 'a model');
const kTable: CallTable<SaveModelOptions> = { dtype: kSavedDType, replace: kCall.function };

/**
 * Writes a model; the weights appear whole or not at all. At most one replaced or converted tensor is alive at a time. Converted
 * weights are rounded to the nearest value, ties to even.
 * @throws NativeError with sizes when the disk is full; ArgumentError naming a weight that is too large for f16
 */
export async function saveModel(
  model: Model,
  folder: string,
  options: SaveModelOptions = {},
): Promise<void> {
  checkArgument('saveModel: the model', kModel, model);
  checkArgument('saveModel: the folder', kCall.path, folder);
  checkCall('saveModel', options, kTable);
  const { dtype, replace } = options;
  const parameters = [...model.namedParameters()];
  const transposed = transposedWeights(model);
  const specs: Record<string, TensorSpec> = Object.fromEntries(
    parameters.map(([name, weight]) => {
      const { shape } = weight;
      const stored = transposed.has(weight) ? [...shape].reverse() : shape;
      return [name, { dtype: dtype ?? weight.dtype, shape: stored }];
    }),
  );
  const json = model.configJson();
  if (dtype !== undefined) json.dtype = DTYPE_NAMES[dtype];
  const config = `${JSON.stringify(json, null, 2)}\n`;
  await makeFolder(folder);
  const writer = new SafetensorsWriter(join(folder, SINGLE_WEIGHTS), specs, { format: 'pt' });
  try {
    for (const [name, weight] of parameters) {
      const replacement: unknown = replace?.(name, weight) ?? null;
      checkReplacement(replacement, name, weight);
      try {
        const values = (replacement ?? weight).detach();
        if (dtype === 'f16') await checkFitsF16(name, values);
        scope(() => {
          const converted = dtype === undefined ? values : values.to(dtype);
          writer.write(name, transposed.has(weight) ? contiguous(transpose(converted)) : converted);
        });
        values.dispose();
      } finally {
        replacement?.dispose();
      }
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

/** @throws ArgumentError for anything but null or a tensor of the weight's shape */
function checkReplacement(
  given: unknown,
  name: string,
  weight: Tensor,
): asserts given is Tensor | null {
  if (given === null || (given instanceof Tensor && given.shape.join() === weight.shape.join()))
    return;
  const found = given instanceof Tensor ? `the shape (${given.shape.join(',')})` : shown(given);
  throw new ArgumentError(
    `saveModel: replace must return null or a tensor of the shape (${weight.shape.join(',')}) for ${name}, got ${found}`,
  );
}

/** Magnitudes from here on are infinite in f16, whose largest number is 65504. */
const kF16Overflow = 65520;

/** @throws ArgumentError naming the tensor and its largest magnitude, if f16 has no number for it */
async function checkFitsF16(name: string, values: Tensor): Promise<void> {
  if (values.dtype === 'f16' || values.size === 0) return;
  const largest = scope(() => noGrad(() => max(abs(values))));
  const magnitude = await largest.item();
  largest.dispose();
  if (magnitude < kF16Overflow) return;
  throw new ArgumentError(
    `${name} has a weight of magnitude ${magnitude.toPrecision(6)}, and the largest number in f16 is 65504; write bf16 or f32 (--dtype)`,
  );
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
