/**
 * Loading of a model's tensors from its files. The tensors that the configuration implies, by name and shape, are compared with those
 * that the files hold, and everything that is missing, left over or of the wrong shape is reported in one error.
 */
import { sharesProcessMemory } from '../device.ts';
import { ArgumentError, FormatError, UnsupportedError } from '../errors.ts';
import type { TensorFile } from '../io/index.ts';
import { Conv1D, LayerNorm, Linear, RMSNorm } from '../nn/index.ts';
import { contiguous, type RmsNormOptions, transpose } from '../ops/index.ts';
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
  /** Whether `read` gives pages of the file, where `share` allows it on the CPU. Default: it never does. */
  aliases?(name: string, options: WeightReadOptions): boolean;
  close(): void;
}

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
    private readonly options: WeightReadOptions,
    private readonly prefix: string,
    private readonly plan: Map<string, readonly number[]> | null,
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
    options: WeightReadOptions & {
      ignore?: readonly string[];
      onProgress?: LoadProgress | undefined;
    },
    make: (weights: WeightLoader) => T,
  ): T {
    const plan = WeightLoader.plan(options, make);
    checkPlan(source, plan, options.ignore ?? []);
    requireFreeMemory({
      path: source.path,
      dtype: options.dtype,
      bytesIn: (dtype) => weightBytes(source, plan, { ...options, dtype }),
    });
    const { onProgress } = options;
    const read = onProgress === undefined ? source : withProgress(source, plan.size, onProgress);
    return make(new WeightLoader(read, options, '', null));
  }

  /** Collects the names and shapes that a model asks for, without reading anything. */
  static plan(
    options: WeightReadOptions,
    make: (weights: WeightLoader) => unknown,
  ): ReadonlyMap<string, readonly number[]> {
    const plan = new Map<string, readonly number[]>();
    make(new WeightLoader(kNoSource, options, '', plan));
    return plan;
  }

  /** The loader of the tensors below a path. */
  at(path: string): WeightLoader {
    return new WeightLoader(this.source, this.options, `${this.prefix}${path}.`, this.plan);
  }

  tensor(name: string, shape: readonly number[]): Tensor {
    const full = this.prefix + name;
    if (this.plan !== null) {
      this.plan.set(full, shape);
      return undefined as unknown as Tensor; // The modules of this pass are thrown away.
    }
    return keep(this.source.read(full, this.options));
  }

  /** @param shape (out,in) */
  linear(name: string, shape: readonly [number, number], bias: boolean): Linear {
    const weight = this.tensor(`${name}.weight`, shape);
    return new Linear(weight, bias ? this.tensor(`${name}.bias`, [shape[0]]) : null);
  }

  /** A linear stored as (in,out), with its bias. @param shape (out,in) */
  conv1d(name: string, [out, inner]: readonly [number, number]): Conv1D {
    const stored = this.tensor(`${name}.weight`, [inner, out]);
    const bias = this.tensor(`${name}.bias`, [out]);
    if (this.plan !== null) return new Conv1D(stored, bias);
    const weight = keep(scope(() => noGrad(() => contiguous(transpose(stored)))));
    stored.dispose();
    return new Conv1D(weight, bias);
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
    close: () => source.close(),
  };
}

function checkPlan(
  source: WeightSource,
  plan: ReadonlyMap<string, readonly number[]>,
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
  for (const [name, wanted] of plan) {
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
  plan: ReadonlyMap<string, readonly number[]>,
  options: WeightReadOptions,
): number {
  const aliases = options.share && sharesProcessMemory();
  let bytes = 0;
  for (const [name, shape] of plan) {
    if (aliases && source.aliases?.(name, options) === true) continue;
    bytes += shape.reduce((product, extent) => product * extent, DTYPE_BYTES[options.dtype]);
  }
  return bytes;
}

function shortList(names: readonly string[]): string {
  const more = names.length > kListed ? `, and ${names.length - kListed} more` : '';
  return names.slice(0, kListed).join(', ') + more;
}
