/**
 * Loading of a model's tensors from its files. The tensors that the configuration implies, by name and shape, are compared with those
 * that the files hold, and everything that is missing, left over or of the wrong shape is reported in one error.
 */
import { getDefaultDevice, sharesProcessMemory, withDevice } from '../device.ts';
import { ArgumentError, FormatError, UnsupportedError } from '../errors.ts';
import { fourBitWeight, kBlockSize, quantizeNf4 } from '../io/blocks.ts';
import type { TensorFile } from '../io/index.ts';
import type { OffloadedBase } from '../io/offload.ts';
import { Conv1D, LayerNorm, Linear, RMSNorm } from '../nn/index.ts';
import { contiguous, type RmsNormOptions, square, sub, sum, transpose } from '../ops/index.ts';
import { DTYPE_BYTES, type DType, keep, noGrad, scope, type Tensor } from '../tensor.ts';
import { requireFreeMemory } from './free_memory.ts';

/** The tensors of a checkpoint under Hugging Face's names, whatever the files are. */
export interface WeightSource {
  /** Path for messages. */
  readonly path: string;
  /** Name to shape. */
  readonly shapes: ReadonlyMap<string, readonly number[]>;
  /** The open files; undefined where there are none. */
  readonly files?: readonly Pick<TensorFile, 'path' | 'identity'>[];
  read(name: string, options: WeightReadOptions): Tensor;
  /** The blocks in which the files hold a tensor; null: it stands there in a float type. Left out: none is in blocks. */
  blocks?(name: string): StoredBlocks | null;
  /**
   * A tensor that stays in the blocks of the files; for one of which `blocks` is not null.
   * @param transposed whether its transpose is wanted: refused, but where that is how the files hold it
   * @throws UnsupportedError for a tensor that the files hold in another layout
   */
  readBlocks?(name: string, options: WeightReadOptions, transposed: boolean): Tensor;
  /** Whether `read` gives pages of the file, where `share` allows it on the CPU. Default: it never does. */
  aliases?(name: string, options: WeightReadOptions): boolean;
  close(): void;
}

/** The blocks in which the files hold a tensor. */
export interface StoredBlocks {
  /** Name of the blocks: "NF4", "Q4_1". */
  readonly form: string;
  /** Bytes of memory that the tensor takes in them. */
  readonly bytes: number;
}

/**
 * The blocks in which frozen matrices stay in memory: `nf4`, as bitsandbytes has quantised them, and quantised here where the files
 * have floats; `gguf`, those of the GGUF file.
 */
export type BlockFormat = 'nf4' | 'gguf';

/** Options of {@link WeightLoader}. */
interface LoaderOptions extends WeightReadOptions {
  /** Default null: every tensor has its values in memory. */
  readonly blockFormat?: BlockFormat | null;
  /** The keeper of matrices and tables that are read from the disk. Default null: they stay in memory. */
  readonly offload?: OffloadedBase | null;
  /** Called for each tensor that is quantised as it is read. Default: not called. */
  readonly onQuantized?: OnQuantized;
}

/** Is given the sums of squares of what quantising a tensor has lost, and of the tensor: () f32 each, of the receiver. */
export type OnQuantized = (lost: Tensor, whole: Tensor) => void;

/**
 * The part that a tensor has in a model. Matrices of layers are quantised where that is asked for; the embedding and the head are in
 * blocks only where the files have them so.
 */
type Role = 'values' | 'table' | 'head' | 'matrix' | 'transposed';

interface Planned {
  readonly shape: readonly number[];
  readonly role: Role;
}

/** Types of GGUF files whose "blocks" have one value. */
export const kFloatForms: ReadonlySet<string> = new Set(['F16', 'BF16']);
/** Name of the head over a vocabulary. */
const kHeadName = 'lm_head';

export interface WeightReadOptions {
  dtype: DType;
  checkFinite: boolean;
  /** Whether the result may alias pages of the file, so that it is never written. */
  share: boolean;
}

/** Called while a model is read, with the number of tensors read so far and in all. */
export type LoadProgress = (loaded: number, total: number) => void;

/** Names of buffers that old versions of transformers saved, which are no parameters. */
const kBuffers = /(^|\.)(rotary_emb\.inv_freq|attn\.bias|attn\.masked_bias|position_ids)$/;

const kListed = 8;

/** The source while a model is planned, when nothing is read. */
const kNoSource: WeightSource = {
  path: '',
  shapes: new Map(),
  read: () => {
    throw new ArgumentError('WeightLoader.plan() reads nothing; call build() to read a tensor');
  },
  close: () => {},
};

/**
 * Reader of a model's tensors. The model's constructor runs twice: the first time to collect the names and shapes that it asks for,
 * which are checked against the source, the second time to read. So no model has a second list of its weights.
 */
export class WeightLoader {
  private constructor(
    private readonly source: WeightSource,
    private readonly options: LoaderOptions,
    private readonly prefix: string,
    private readonly plan: Map<string, Planned> | null,
    /** The tensors that have been read, to be freed where the model is not made. */
    private readonly made: Tensor[] = [],
  ) {}

  get dtype(): DType {
    return this.options.dtype;
  }

  /**
   * Builds a model from a source.
   * @param options ignore: names that may be left over
   * @throws FormatError for missing tensors and wrong shapes, UnsupportedError for tensors that the model does not ask for,
   *   NativeError for weights that do not fit into the free memory
   */
  static build<T>(
    source: WeightSource,
    options: LoaderOptions & {
      ignore?: readonly string[];
      onProgress?: LoadProgress | undefined;
    },
    make: (weights: WeightLoader) => T,
  ): T {
    const plan = WeightLoader.#collect(options, make);
    checkPlan(source, plan, options.ignore ?? []);
    requireFreeMemory({
      path: source.path,
      dtype: options.dtype,
      bytesIn: (dtype) => weightBytes(source, plan, { ...options, dtype }),
    });
    const { onProgress } = options;
    const read = onProgress === undefined ? source : withProgress(source, plan.size, onProgress);
    const made: Tensor[] = [];
    try {
      return make(new WeightLoader(read, options, '', null, made));
    } catch (error) {
      for (const tensor of made) tensor.dispose();
      throw error;
    }
  }

  /** Bytes that the weights of a model take in the cache file of {@link OffloadedBase}. */
  static cacheBytes(
    source: WeightSource,
    options: LoaderOptions,
    make: (weights: WeightLoader) => unknown,
  ): number {
    const plan = WeightLoader.#collect(options, make);
    return bytesOf(source, plan, options, (role) => role !== 'values');
  }

  /** Collects the names and shapes that a model asks for, without reading anything. */
  static plan(
    options: WeightReadOptions,
    make: (weights: WeightLoader) => unknown,
  ): ReadonlyMap<string, readonly number[]> {
    const plan = WeightLoader.#collect(options, make);
    return new Map(Array.from(plan, ([name, { shape }]) => [name, shape]));
  }

  static #collect(
    options: LoaderOptions,
    make: (weights: WeightLoader) => unknown,
  ): ReadonlyMap<string, Planned> {
    const plan = new Map<string, Planned>();
    make(new WeightLoader(kNoSource, options, '', plan));
    return plan;
  }

  /** The loader of the tensors below a path. */
  at(path: string): WeightLoader {
    const { source, options, prefix, plan, made } = this;
    return new WeightLoader(source, options, `${prefix}${path}.`, plan, made);
  }

  tensor(name: string, shape: readonly number[]): Tensor {
    return this.#read(name, shape, 'values');
  }

  /** A table of which ids select rows. @param shape (rows,C) */
  table(name: string, shape: readonly [number, number]): Tensor {
    return this.#read(name, shape, 'table');
  }

  #read(name: string, shape: readonly number[], role: Role): Tensor {
    const full = this.prefix + name;
    if (this.plan !== null) {
      this.plan.set(full, { shape, role });
      return undefined as unknown as Tensor; // The modules of this pass are thrown away.
    }
    const { offload = null } = this.options;
    const tensor = this.#readInto(full, role);
    this.made.push(tensor);
    if (offload === null || role === 'values') return tensor;
    const offloaded = keep(offload.add(tensor, { name: full, isTable: role === 'table' }));
    this.made.push(offloaded);
    return offloaded;
  }

  #readInto(full: string, role: Role): Tensor {
    const { source, options } = this;
    const form = formOf(source, full, role, options);
    const transposed = role === 'transposed';
    if (form === 'stored') {
      return keep(source.readBlocks?.(full, options, transposed) as Tensor);
    }
    const read = (given: WeightReadOptions): Tensor => {
      const values = source.read(full, given);
      return transposed ? contiguous(transpose(values)) : values;
    };
    if (form === 'values') return keep(scope(() => noGrad(() => read(options))));
    // Quantised from what the file holds, not from that rounded to the model's dtype; on the CPU, so that a device never holds
    // more than the codes.
    const wide: WeightReadOptions = { ...options, dtype: 'f32' };
    const quantize = (): Tensor => {
      const values = read(wide);
      const codes = quantizeNf4(values);
      const inDType = (dtype: DType): Tensor =>
        fourBitWeight(
          { type: 'NF4', blockSize: kBlockSize, ...codes },
          { name: full, shape: values.shape, dtype, checkFinite: false },
        );
      const lost = sub(inDType('f32').to('f32'), values);
      options.onQuantized?.(
        ...([lost, values].map((x) => keep(sum(square(x)))) as [Tensor, Tensor]),
      );
      return inDType(options.dtype);
    };
    const device = getDefaultDevice();
    return keep(scope(() => noGrad(() => withDevice('cpu', quantize).to(device))));
  }

  /** @param shape (out,in) */
  linear(name: string, shape: readonly [number, number], bias: boolean): Linear {
    const role = this.prefix + name === kHeadName ? 'head' : 'matrix';
    const weight = this.#read(`${name}.weight`, shape, role);
    return new Linear(weight, bias ? this.tensor(`${name}.bias`, [shape[0]]) : null);
  }

  /** A linear stored as (in,out), with its bias. @param shape (out,in) */
  conv1d(name: string, [out, inner]: readonly [number, number]): Conv1D {
    const weight = this.#read(`${name}.weight`, [inner, out], 'transposed');
    return new Conv1D(weight, this.tensor(`${name}.bias`, [out]));
  }

  /** A LayerNorm with a bias. @param channels C */
  layerNorm(name: string, channels: number, eps: number): LayerNorm {
    const weight = this.tensor(`${name}.weight`, [channels]);
    return new LayerNorm(weight, this.tensor(`${name}.bias`, [channels]), { eps });
  }

  /** @param channels C */
  rmsNorm(name: string, channels: number, options: RmsNormOptions): RMSNorm {
    return new RMSNorm(this.tensor(`${name}.weight`, [channels]), options);
  }
}

/** The source with a call of `onProgress` after each tensor that is read. */
function withProgress(source: WeightSource, total: number, onProgress: LoadProgress): WeightSource {
  let loaded = 0;
  return {
    path: source.path,
    shapes: source.shapes,
    read: (name, options) => {
      const tensor = source.read(name, options);
      onProgress(++loaded, total);
      return tensor;
    },
    blocks: (name) => source.blocks?.(name) ?? null,
    readBlocks: (name, options, transposed) => {
      const tensor = source.readBlocks?.(name, options, transposed) as Tensor;
      onProgress(++loaded, total);
      return tensor;
    },
    close: () => source.close(),
  };
}

/**
 * The form that a tensor gets in memory: its values, the blocks of the files, or NF4 that is made of its values.
 * @throws UnsupportedError for a tensor in blocks that would be quantised a second time
 */
function formOf(
  source: WeightSource,
  name: string,
  role: Role,
  { blockFormat = null, dtype }: LoaderOptions,
): 'values' | 'stored' | 'nf4' {
  if (blockFormat === null || role === 'values') return 'values';
  const form = source.blocks?.(name)?.form ?? null;
  const isFloat = form === null || kFloatForms.has(form);
  if (blockFormat === 'gguf') {
    return form === null || form.toLowerCase() === dtype ? 'values' : 'stored';
  }
  if (form === 'NF4') return 'stored';
  if (isFloat) return role === 'matrix' || role === 'transposed' ? 'nf4' : 'values';
  throw new UnsupportedError(
    `${source.path}: ${name} is quantised already, to ${form}, and would lose more in NF4; ` +
      `${kUnquantised[form] ?? 'use baseFormat gguf (--base-format gguf), which keeps the blocks of the file'}`,
  );
}

/** Advice for a base whose blocks cannot stay in memory, by their name. */
const kUnquantised: Readonly<Record<string, string>> = {
  FP4: 'leave baseFormat (--base-format) out, and its values are used',
  int8: 'leave baseFormat (--base-format) out, and its values are used',
};

function checkPlan(
  source: WeightSource,
  plan: ReadonlyMap<string, Planned>,
  ignore: readonly string[],
): void {
  const { path, shapes } = source;
  const missing = [...plan.keys()].filter((name) => !shapes.has(name));
  if (missing.length > 0) {
    throw new FormatError(
      `${path}: ${missing.length} of ${plan.size} tensors are missing: ${shortList(missing)}: ` +
        'the download is incomplete or the configuration is of another model',
      { path },
    );
  }
  for (const [name, { shape: wanted }] of plan) {
    const found = shapes.get(name) as readonly number[];
    if (found.join() !== wanted.join()) {
      throw new FormatError(
        `${path}: ${name} must be (${wanted.join(',')}) by the configuration, got (${found.join(',')})`,
        { path },
      );
    }
  }
  const left = [...shapes.keys()].filter(
    (name) => !plan.has(name) && !kBuffers.test(name) && !ignore.includes(name),
  );
  if (left.length > 0) {
    throw new UnsupportedError(
      `${path}: this architecture has no place for ${left.length} of its tensors: ${shortList(left)}; check that config.json is of ` +
        'this checkpoint, or choose another',
    );
  }
}

/**
 * Bytes of memory that the weights of a plan take. Those that alias the file's pages take none, since the system reads these again
 * where it needs their memory.
 */
function weightBytes(
  source: WeightSource,
  plan: ReadonlyMap<string, Planned>,
  options: LoaderOptions,
): number {
  const isOffloaded = (options.offload ?? null) !== null;
  return bytesOf(source, plan, options, (role) => !isOffloaded || role === 'values');
}

/** Bytes beside the files of the tensors whose role counts. */
function bytesOf(
  source: WeightSource,
  plan: ReadonlyMap<string, Planned>,
  options: LoaderOptions,
  counts: (role: Role) => boolean,
): number {
  const aliases = options.share && sharesProcessMemory();
  let bytes = 0;
  for (const [name, { shape, role }] of plan) {
    if (!counts(role) || !source.shapes.has(name)) continue;
    const form = formOf(source, name, role, options);
    const elements = shape.reduce((product, extent) => product * extent, 1);
    if (form === 'stored') {
      bytes += source.blocks?.(name)?.bytes ?? 0;
    } else if (form === 'nf4') {
      bytes += elements / 2 + (elements / kBlockSize) * DTYPE_BYTES.f32;
    } else if (!(aliases && source.aliases?.(name, options) === true)) {
      bytes += elements * DTYPE_BYTES[options.dtype];
    }
  }
  return bytes;
}

function shortList(names: readonly string[]): string {
  const more = names.length > kListed ? `, and ${names.length - kListed} more` : '';
  return names.slice(0, kListed).join(', ') + more;
}
