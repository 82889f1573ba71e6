/** Loading of causal language models from a folder or a GGUF file, by the model_type in them (see registry.ts). */
import { getDefaultDevice, sharesProcessMemory, withDevice } from '../device.ts';
import { ArgumentError, UnsupportedError } from '../errors.ts';
import { findModel, hubTable, type ResolveOptions } from '../io/hub.ts';
import { OffloadedBase, offloadFolder, requireDiskSpace } from '../io/offload.ts';
import { max, maximum, sub } from '../ops/index.ts';
import {
  type CallTable,
  checkArgument,
  checkCall,
  kCall,
  oneOf,
  wholeNumber,
} from '../options/call.ts';
import { TORCH_DTYPES } from '../options/elsewhere.ts';
import { DEFAULT_SEED } from '../options/option.ts';
import { availableMemory, synchronize, trimMemory, withMemoryTag } from '../runtime.ts';
import { type DType, noGrad, scope, type Tensor, unscoped } from '../tensor.ts';
import { quantizedWeights, withoutQuantization } from './bitsandbytes.ts';
import type { CausalLM } from './causal_lm.ts';
import { type ConfigOptions, initializerRange, modelTypeOf } from './config_keys.ts';
import type { ConfiguredModel, ModelFamily } from './family.ts';
import { HfWeights } from './hf_weights.ts';
import type { Model, ModelOrigin } from './model.ts';
import { configured, openModel, requireDevice } from './opened.ts';
import { RandomWeights } from './random_weights.ts';
import { familyOf, familyOfGguf } from './registry.ts';
import {
  type BlockFormat,
  kFloatForms,
  type LoadProgress,
  type OnQuantized,
  WeightLoader,
  type WeightReadOptions,
  type WeightSource,
} from './weights.ts';

/** The forms of a frozen base in memory, see {@link FromPretrainedOptions.baseFormat}. */
export const BASE_FORMATS = ['bf16', 'f32', 'nf4', 'gguf'] as const;

/** Options of {@link AutoModelForCausalLM.fromPretrained}. */
export interface FromPretrainedOptions extends ConfigOptions, ResolveOptions {
  /** Type of weights and activations (default f32); f64 is for research. */
  dtype?: 'f32' | 'bf16' | 'f64';
  /**
   * Form of the frozen matrices in memory. `bf16` and `f32` are those of `dtype`. `nf4`: 4-bit blocks as bitsandbytes has them, which are
   * kept where the files have them and made where these have floats; the embedding and the head stay as they are. `gguf`: the blocks
   * of the GGUF file, of the embedding and the head too. Blocks are decoded to `dtype` where they are used. Default: `dtype`, to which
   * blocks in files are decoded when they are read.
   */
  baseFormat?: 'bf16' | 'f32' | 'nf4' | 'gguf';
  /**
   * Whether the frozen matrices are read from the disk as they are used, so that the base may be larger than memory: a share stays
   * in memory, the rest is read a layer ahead and dropped behind. The share is what a run's `memoryBudget` leaves, without one half of
   * the memory that is free. Results are the same bit for bit. On the CPU. Default false.
   */
  baseOffload?: boolean;
  /**
   * The folder of a file for offloaded weights that the model's files do not hold as they are used: converted to another dtype,
   * quantised as they are read, or in another order. It has no name, and is gone when the model is. Default: TMPDIR, or /var/tmp.
   */
  offloadFolder?: string;
  /** "cpu", "cuda", "cuda:1". Default: see {@link getDefaultDevice}. */
  device?: string;
  /**
   * Whether weights get memory of their own, so that they may be trained in place; otherwise they may be pages of the file, and
   * are frozen. Default false.
   */
  trainable?: boolean;
  /** Whether to refuse weights with NaN or infinities, which takes one pass over them. Default true. */
  checkFinite?: boolean;
  /** Called after each tensor that is read, with their number so far and in all. Loading waits for it, so it must be quick. */
  onProgress?: LoadProgress;
}

/** Options of `fromConfig`. */
export interface FromConfigOptions extends ConfigOptions {
  /** Type of weights and activations (default f32). */
  dtype?: 'f32' | 'bf16' | 'f64';
  /**
   * Form of the frozen matrices in memory, see {@link FromPretrainedOptions.baseFormat}; `nf4` is made of each matrix as it is drawn.
   * Default: `dtype`.
   */
  baseFormat?: 'bf16' | 'f32' | 'nf4';
  /** Seed of the random weights (default 42). */
  seed?: number;
  /** See {@link FromPretrainedOptions.trainable}. Default false. */
  trainable?: boolean;
  /** See {@link FromPretrainedOptions.device}. */
  device?: string;
}

const kDType = { ...oneOf(['f32', 'bf16', 'f64']), refused: TORCH_DTYPES };

/** The kinds of the options of a loader. */
export const loadTable: CallTable<FromPretrainedOptions> = {
  ...hubTable,
  ignoreKeys: kCall.texts,
  dtype: kDType,
  baseFormat: oneOf(BASE_FORMATS),
  baseOffload: kCall.boolean,
  offloadFolder: kCall.path,
  device: kCall.text,
  trainable: kCall.boolean,
  checkFinite: kCall.boolean,
  onProgress: kCall.function,
};

/** The kinds of the options of `fromConfig`. */
export const configTable: CallTable<FromConfigOptions> = {
  ignoreKeys: kCall.texts,
  dtype: kDType,
  baseFormat: oneOf(BASE_FORMATS.filter((format) => format !== 'gguf')),
  seed: wholeNumber({ least: 0 }),
  trainable: kCall.boolean,
  device: kCall.text,
};

/** Loads causal language models of every supported family. */
export const AutoModelForCausalLM = {
  /**
   * Loads a causal language model.
   * @param nameOrPath a Hugging Face folder (safetensors, single or sharded), a .gguf file, a folder that holds one, or an
   *   id on the Hub
   * @throws UnsupportedError for a model_type, device or config key that is not known; FormatError for damaged files,
   *   missing tensors, wrong shapes, NaN in the weights; ArgumentError for an option of another type; ArgumentError, NativeError as
   *   resolveModel does
   * @example const model = await AutoModelForCausalLM.fromPretrained('./SmolLM2-135M', { dtype: 'bf16' });
   */
  async fromPretrained(nameOrPath: string, options: FromPretrainedOptions = {}): Promise<CausalLM> {
    checkCall('fromPretrained', options, loadTable);
    const { dtype = 'f32', device, trainable = false, checkFinite = true } = options;
    requireDevice(options);
    const folder = await findModel(nameOrPath, options);
    const opened = await open(folder, options);
    const errors = new QuantizationSums();
    let offload: OffloadedBase | null = null;
    let model: CausalLM | null = null;
    try {
      const { onProgress } = options;
      const blockFormat = blockFormatOf(opened, { ...options, dtype, trainable });
      const share = !trainable;
      const format = { dtype, checkFinite, share, blockFormat };
      const cacheFolder = await cacheFolderOf(opened, { ...options, ...format });
      offload = cacheFolder === null ? null : new OffloadedBase(cacheFolder);
      const { onQuantized } = errors;
      const read = { ...format, offload, onProgress, onQuantized };
      model = await build(opened, { ...read, device }, { nameOrPath, folder, dtype });
      model.offload = offload;
      await finishLoading(model, opened.source, { trainable });
      if (offload !== null) chooseResidentShare(offload);
      await errors.note(model, opened.source, blockFormat);
      return model;
    } catch (error) {
      model?.dispose();
      errors.dispose();
      offload?.close();
      // Ops that were enqueued end here: their failure is not that of a later op, and their memory and the cache file are free.
      await synchronize().catch(() => {});
      throw error;
    } finally {
      opened.source.close();
    }
  },

  /**
   * Makes a model of a configuration with random weights: matrices normal with deviation `initializer_range`, norms 1, biases 0.
   * The same seed gives the same weights.
   * @param config the keys of config.json
   * @throws as fromPretrained does for the configuration
   * @example const model = await AutoModelForCausalLM.fromConfig({ model_type: 'llama', ... }, { dtype: 'bf16' });
   */
  async fromConfig(
    config: Readonly<Record<string, unknown>>,
    given: FromConfigOptions = {},
  ): Promise<CausalLM> {
    checkArgument('fromConfig: the configuration', kCall.object, config);
    checkCall('fromConfig', given, configTable);
    const {
      dtype = 'f32',
      seed = DEFAULT_SEED,
      trainable = false,
      device,
      baseFormat,
      ...options
    } = given;
    requireDevice({ device });
    const path = 'the configuration';
    const family = familyOf(modelTypeOf(config, path), path);
    const configured = family.configure({ ...config }, { ...options, path });
    const { tied, causalLM } = configured;
    const origin: ModelOrigin = { nameOrPath: 'random weights', folder: '', dtype };
    const errors = new QuantizationSums();
    const { onQuantized } = errors;
    const read = { dtype, checkFinite: false, share: false, onQuantized };
    const shapes = WeightLoader.plan(read, (weights) => causalLM({ weights, origin, tied }));
    const deviation = initializerRange(config, path);
    const source = new RandomWeights(shapes, { seed, deviation });
    const opened = { gguf: false, family, configured, source };
    const blockFormat = blockFormatOf(opened, { baseFormat, dtype, trainable });
    const model = await build(opened, { ...read, blockFormat, device }, origin);
    await finishLoading(model, source, { trainable });
    await errors.note(model, source, blockFormat);
    return model;
  },
};

/**
 * Checks that a causal language model can be loaded, by its configuration and the headers of its files.
 * @throws as {@link AutoModelForCausalLM.fromPretrained} does before it reads weights
 */
export async function checkCausalLM(
  nameOrPath: string,
  options: FromPretrainedOptions = {},
): Promise<void> {
  checkCall('checkCausalLM', options, loadTable);
  requireDevice(options);
  const { dtype = 'f32', trainable = false } = options;
  const opened = await open(await findModel(nameOrPath, options), options);
  await closedAfter(opened.source, async () => {
    const blockFormat = blockFormatOf(opened, { ...options, dtype, trainable });
    await cacheFolderOf(opened, {
      ...{ ...options, dtype, blockFormat },
      ...{ checkFinite: true, share: !trainable },
    });
  });
}

/**
 * The blocks in which the files of a causal language model hold a tensor, "NF4" or "Q4_1"; null: they hold floats.
 * @throws as {@link checkCausalLM} does
 */
export async function storedForm(
  folder: string,
  options: ConfigOptions = {},
): Promise<string | null> {
  const { source } = await open(folder, options);
  return closedAfter(source, () => {
    const forms = Array.from(source.shapes.keys(), (name) => source.blocks?.(name)?.form);
    return forms.find((form) => form !== undefined && !kFloatForms.has(form)) ?? null;
  });
}

/**
 * Refuses what a base that is read from the disk cannot be: trained, or on a GPU.
 * @throws ArgumentError, UnsupportedError
 */
function refuseOffload({ baseOffload = false, trainable, device }: FromPretrainedOptions): void {
  if (!baseOffload) return;
  if (trainable === true) {
    throw new ArgumentError(
      'baseOffload: the weights of an offloaded base are frozen, and trainable asks for weights that are trained; train an adapter',
    );
  }
  if (!withDevice(device, () => sharesProcessMemory())) {
    throw new UnsupportedError(
      `baseOffload: a base is offloaded on the CPU alone, not on ${device ?? getDefaultDevice()}`,
    );
  }
}

/**
 * The folder of the cache of a base that is to be read from the disk, which has room for it; null: the base is to stay in memory.
 * @throws as refuseOffload and requireDiskSpace do
 */
async function cacheFolderOf(
  { configured, source }: LoadableModel,
  options: FromPretrainedOptions & WeightReadOptions & { blockFormat: BlockFormat | null },
): Promise<string | null> {
  refuseOffload(options);
  if (options.baseOffload !== true) return null;
  const folder = options.offloadFolder ?? offloadFolder();
  const origin = { nameOrPath: '', folder: '', dtype: options.dtype };
  const { tied } = configured;
  const bytes = withDevice('cpu', () =>
    WeightLoader.cacheBytes(source, options, (weights) =>
      configured.causalLM({ weights, origin, tied }),
    ),
  );
  await requireDiskSpace(folder, bytes);
  return folder;
}

/** The part of the free memory that holds weights where no budget says what they may take. */
const kResidentPart = 0.5;

function chooseResidentShare(offload: OffloadedBase): void {
  trimMemory();
  offload.residentBytes = kResidentPart * (availableMemory()?.free ?? 0);
}

/**
 * Refuses the base formats and the offloading of language models for a model of another task.
 * @throws UnsupportedError
 */
export function refuseBlocks({
  baseFormat,
  baseOffload = false,
  dtype = 'f32',
}: FromPretrainedOptions): void {
  if (baseOffload) {
    throw new UnsupportedError(
      'baseOffload is for causal language models; leave it out (--base-offload) for a model of another task',
    );
  }
  if (baseFormat === undefined || baseFormat === dtype) return;
  throw new UnsupportedError(
    `baseFormat ${baseFormat} is for causal language models; leave it out (--base-format) for a model of another task`,
  );
}

/** The sums of squares of what quantising has lost, and of what it was given. */
class QuantizationSums {
  readonly #lost: Tensor[] = [];
  readonly #whole: Tensor[] = [];

  readonly onQuantized: OnQuantized = (lost, whole) => {
    this.#lost.push(lost);
    this.#whole.push(whole);
  };

  dispose(): void {
    for (const sum of [...this.#lost, ...this.#whole]) sum.dispose();
  }

  /** Notes in a model the blocks of its base, and whether and how well they were made here. Frees the sums. */
  async note(model: Model, source: WeightSource, blockFormat: BlockFormat | null): Promise<void> {
    model.blockFormat = blockFormat;
    model.isQuantizedHere = [...model.namedParameters()].some(
      ([name, { encoding }]) => encoding !== null && !isInBlocks(source, name),
    );
    model.quantizationError = await this.#total();
  }

  /** The relative error over all tensors; null: there was none, or all were 0. */
  async #total(): Promise<number | null> {
    const [lost, whole] = await Promise.all([this.#lost, this.#whole].map(sumOf));
    return whole ? Math.sqrt((lost as number) / whole) : null;
  }
}

async function sumOf(tensors: readonly Tensor[]): Promise<number> {
  let total = 0;
  for (const one of tensors) {
    total += await one.item();
    one.dispose();
  }
  return total;
}

/** Whether the files hold a tensor in blocks. */
function isInBlocks(source: WeightSource, name: string): boolean {
  return (source.blocks?.(name) ?? null) !== null;
}

/**
 * The blocks in which a base is to stay in memory; null: it has its values there.
 * @throws ArgumentError, UnsupportedError for a base format that does not go with the files or the other options
 */
function blockFormatOf(
  { gguf, source }: LoadableModel,
  options: FromPretrainedOptions & { dtype: DType; trainable: boolean },
): BlockFormat | null {
  const { baseFormat, dtype, trainable } = options;
  if (baseFormat === undefined || baseFormat === dtype) return null;
  if (baseFormat === 'bf16' || baseFormat === 'f32') {
    throw new ArgumentError(
      `baseFormat ${baseFormat} is that of dtype ${baseFormat}, got dtype ${dtype}`,
    );
  }
  if (trainable) {
    throw new ArgumentError(
      `baseFormat ${baseFormat}: weights in blocks are frozen, and trainable asks for weights that are trained`,
    );
  }
  if (baseFormat === 'gguf' && !gguf) {
    throw new ArgumentError(`${source.path}: baseFormat gguf needs a GGUF file`);
  }
  return baseFormat;
}

/** A model's files with their configuration parsed and their weights not read yet. */
interface LoadableModel {
  readonly gguf: boolean;
  readonly family: ModelFamily;
  readonly configured: ConfiguredModel;
  readonly source: WeightSource;
}

async function open(place: string, options: ConfigOptions): Promise<LoadableModel> {
  const opened = await openModel(place, options, {
    ofType: familyOf,
    ofGguf: familyOfGguf,
    prefixOf: ({ prefix }) => prefix,
  });
  const { gguf, family, path, stored } = opened;
  return closedOnError(stored, async () => {
    const json = withoutQuantization(opened.json, path);
    const source = stored instanceof HfWeights ? await quantizedWeights(stored) : stored;
    const config = configured({ path, stored: source }, options, (own) =>
      family.configure(json, own),
    );
    return { gguf, family, configured: config, source };
  });
}

/** Runs `body`, and closes the source in any case. */
async function closedAfter<T>(source: WeightSource, body: () => T | Promise<T>): Promise<T> {
  try {
    return await body();
  } finally {
    source.close();
  }
}

/** Runs `make`, and closes the source if it throws. */
async function closedOnError<T>(source: WeightSource, make: () => T | Promise<T>): Promise<T> {
  try {
    return await make();
  } catch (error) {
    source.close();
    throw error;
  }
}

async function build(
  { family, configured, source }: LoadableModel,
  {
    device,
    ...read
  }: WeightReadOptions &
    OnDevice & {
      blockFormat?: BlockFormat | null;
      offload?: OffloadedBase | null;
      onProgress?: LoadProgress | undefined;
      onQuantized?: OnQuantized;
    },
  origin: ModelOrigin,
): Promise<CausalLM> {
  const tied = configured.tied && (await headIsEmbedding(source, family.embedding));
  if (read.offload) read.offload.gathersTables = !tied;
  const options = { ...read, ignore: tied ? [kHead] : [] };
  return buildOn(device, () =>
    WeightLoader.build(source, options, (weights) =>
      configured.causalLM({ weights, origin, tied }),
    ),
  );
}

interface OnDevice {
  readonly device: string | undefined;
}

/** Builds a model whose weights are on a device and belong to no scope. */
export function buildOn<T>(device: string | undefined, make: () => T): T {
  return withMemoryTag('weights', () => unscoped(() => withDevice(device, make)));
}

/** The name of the weight of a head over a vocabulary. */
export const kHead = 'lm_head.weight';

/**
 * Whether the head in a checkpoint is missing or equal to the embedding. A tied model may store its head again; a head that differs
 * was trained separately, and then, as in transformers 5, the model is not tied.
 */
export async function headIsEmbedding(source: WeightSource, embedding: string): Promise<boolean> {
  if (!source.shapes.has(kHead) || !source.shapes.has(embedding)) return true;
  if (source.shapes.get(kHead)?.join() !== source.shapes.get(embedding)?.join()) return false;
  const read: WeightReadOptions = { dtype: 'f32' as DType, checkFinite: false, share: true };
  // On the CPU, which may look at the file's own pages.
  const largest = withDevice('cpu', () =>
    scope(() =>
      noGrad(() => {
        const difference = sub(source.read(kHead, read), source.read(embedding, read));
        return max(maximum(difference, sub(0, difference)));
      }),
    ),
  );
  const value = await largest.item();
  largest.dispose();
  return value === 0;
}

/**
 * Waits until a model's weights are read from `source`, and freezes them unless they are trainable. If reading fails, frees the
 * model and throws.
 */
export async function finishLoading(
  model: Model,
  source: WeightSource,
  { trainable }: { trainable: boolean },
): Promise<void> {
  try {
    await synchronize();
  } catch (error) {
    model.dispose();
    throw error;
  }
  // The files as they were opened: what has the name by now may be another one.
  model.stored = source.files?.map(({ path, identity }) => ({ path, identity })) ?? null;
  if (trainable) return;
  for (const parameter of model.parameters()) parameter.freeze();
}
