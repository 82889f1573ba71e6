/**
 * Saving of a model as a Hugging Face folder: config.json, model.safetensors (or several files with their index), and the tokenizer's
 * files of its source.
 */
import { basename, join, resolve } from 'node:path';
import { ArgumentError } from '../errors.ts';
import { makeFolder, writeFileAtomic } from '../io/files.ts';
import { SafetensorsWriter, type TensorSpec } from '../io/index.ts';
import { COMPANIONS, SINGLE_WEIGHTS, WEIGHTS_INDEX } from '../io/model_folder.ts';
import { readOwn } from '../io/own_files.ts';
import { isMissing } from '../io/regular_file.ts';
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
import { DTYPE_BYTES, noGrad, scope, Tensor } from '../tensor.ts';
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
  /** Largest size of a file of weights, in bytes; a tensor that is larger has a file of its own. Default: no limit. */
  maxShardSize?: number;
}

/** Types in which a model's weights are written. */
export type SavedDType = 'f32' | 'bf16' | 'f16' | 'f64';

/** The types in which weights are written, and what the options must be. */
export const kSavedDType = oneOf(['f32', 'bf16', 'f16', 'f64']);
const kModel = instanceOf(Model, 'a model');
const kTable: CallTable<SaveModelOptions> = {
  dtype: kSavedDType,
  replace: kCall.function,
  maxShardSize: kCall.amount,
};

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
  const { dtype, replace, maxShardSize = Number.POSITIVE_INFINITY } = options;
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
  // Read first, so that nothing is written where one of them is refused.
  const companions = await readCompanions(model.folder);
  await makeFolder(folder);
  const writer = await ShardedWriter.create(folder, specs, maxShardSize);
  try {
    for (const [name, weight] of parameters) {
      const replacement: unknown = replace?.(name, weight) ?? null;
      checkReplacement(replacement, name, weight);
      const values = (replacement ?? weight).detach();
      try {
        if (dtype === 'f16') await checkFitsF16(name, values);
        scope(() => {
          const converted = values.to(dtype ?? values.dtype); // the values of one in blocks
          writer.write(name, transposed.has(weight) ? contiguous(transpose(converted)) : converted);
        });
      } finally {
        values.dispose();
        replacement?.dispose();
      }
      await synchronize();
    }
    await writer.commit();
  } catch (error) {
    await writer.abandon();
    throw error;
  }
  await writeFileAtomic(join(folder, 'config.json'), config);
  if (resolve(model.folder) !== resolve(folder)) await writeCompanions(folder, companions);
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

/** Writes weights into one file, or into several with an index. The files get their names together, at commit. */
class ShardedWriter {
  private constructor(
    private readonly folder: string,
    private readonly specs: Readonly<Record<string, TensorSpec>>,
    private readonly writers: ReadonlyMap<string, SafetensorsWriter>,
  ) {}

  /** Reserves the room of all files. @throws NativeError with sizes when the disk cannot hold one */
  static async create(
    folder: string,
    specs: Readonly<Record<string, TensorSpec>>,
    maxShardSize: number,
  ): Promise<ShardedWriter> {
    const shards = shardsOf(specs, maxShardSize);
    const files = shardNames(shards.length);
    const writers = new Map<string, SafetensorsWriter>();
    try {
      for (const [shard, names] of shards.entries()) {
        const own = Object.fromEntries(names.map((name) => [name, specs[name] as TensorSpec]));
        const path = join(folder, files[shard] as string);
        const writer = new SafetensorsWriter(path, own, { format: 'pt' });
        for (const name of names) writers.set(name, writer);
      }
    } catch (error) {
      for (const writer of new Set(writers.values())) await writer.abandon();
      throw error;
    }
    return new ShardedWriter(folder, specs, writers);
  }

  write(name: string, tensor: Tensor): void {
    (this.writers.get(name) as SafetensorsWriter).write(name, tensor);
  }

  async commit(): Promise<void> {
    const writers = new Set(this.writers.values());
    for (const writer of writers) await writer.commit();
    if (writers.size <= 1) return;
    const files = Array.from(this.writers, ([name, { path }]) => [name, basename(path)] as const);
    const index = {
      metadata: {
        total_size: Object.values(this.specs).reduce((sum, spec) => sum + bytesOf(spec), 0),
      },
      weight_map: Object.fromEntries(files.sort(([a], [b]) => (a < b ? -1 : 1))),
    };
    const path = join(this.folder, WEIGHTS_INDEX);
    await writeFileAtomic(path, `${JSON.stringify(index, null, 2)}\n`);
  }

  async abandon(): Promise<void> {
    for (const writer of new Set(this.writers.values())) await writer.abandon();
  }
}

/** The names of the tensors of each file, in their order: a file is full when the next tensor would make it larger than `most`. */
function shardsOf(specs: Readonly<Record<string, TensorSpec>>, most: number): string[][] {
  const shards: string[][] = [[]];
  let size = 0;
  for (const [name, spec] of Object.entries(specs)) {
    const bytes = bytesOf(spec);
    const full = size + bytes > most && (shards.at(-1) as string[]).length > 0;
    if (full) shards.push([]);
    size = full ? bytes : size + bytes;
    (shards.at(-1) as string[]).push(name);
  }
  return shards;
}

const bytesOf = ({ dtype, shape }: TensorSpec): number =>
  shape.reduce((product, extent) => product * extent, DTYPE_BYTES[dtype]);

/** File names of the weights as transformers gives them. */
function shardNames(count: number): string[] {
  if (count === 1) return [SINGLE_WEIGHTS];
  const padded = (number: number): string => `${number}`.padStart(5, '0');
  return Array.from(
    { length: count },
    (_, i) => `model-${padded(i + 1)}-of-${padded(count)}.safetensors`,
  );
}

/** Magnitudes from here on are infinite in f16, whose largest number is 65504. */
const kF16Overflow = 65520;

/** @throws ArgumentError naming the tensor and its largest magnitude, if that is not finite or f16 has no number for it */
async function checkFitsF16(name: string, values: Tensor): Promise<void> {
  if (values.dtype === 'f16' || values.size === 0) return;
  const largest = scope(() => noGrad(() => max(abs(values))));
  const magnitude = await largest.item();
  largest.dispose();
  if (magnitude < kF16Overflow) return;
  const problem = Number.isFinite(magnitude)
    ? `a weight of magnitude ${magnitude.toPrecision(6)}, and the largest number in f16 is 65504`
    : `a weight that is not finite (${magnitude}), which f16 is not written with`;
  throw new ArgumentError(`${name} has ${problem}; write bf16 or f32 (dtype)`);
}

/** Weights that checkpoints store as (in,out). */
function transposedWeights(model: Model): ReadonlySet<Tensor> {
  const modules = Array.from(model.namedModules(), ([, module]) => module);
  return new Set(modules.flatMap((module) => (module instanceof Conv1D ? [module.weight] : [])));
}

/**
 * Copies the files of the vocabulary from a model's folder.
 * @param names those to copy. Default: all
 * @throws FormatError as {@link readCompanions} does
 */
export async function copyCompanions(
  from: string,
  to: string,
  names?: readonly string[],
): Promise<void> {
  if (resolve(from) === resolve(to)) return;
  await writeCompanions(to, await readCompanions(from, names));
}

/** The files of the vocabulary in a model's folder. @throws FormatError for one that is not the folder's own (see lib/io/own_files.ts) */
async function readCompanions(
  folder: string,
  names: readonly string[] = COMPANIONS,
): Promise<ReadonlyMap<string, Buffer>> {
  const found = new Map<string, Buffer>();
  if (folder === '') return found;
  for (const path of names) {
    const bytes = await readOwn({ folder, path }).catch((error: unknown) => {
      if (isMissing(error)) return null;
      throw error;
    });
    if (bytes !== null) found.set(path, bytes);
  }
  return found;
}

async function writeCompanions(folder: string, files: ReadonlyMap<string, Buffer>): Promise<void> {
  for (const [name, bytes] of files) await writeFileAtomic(join(folder, name), bytes);
}
