// The Tensor class, a thin object around a native handle. Memory is reference-counted natively; JavaScript frees its references with
// dispose(), `using`, or at the end of a scope(). A FinalizationRegistry only catches leaks.

import { beyondAbort } from './abort.ts';
import { deviceName, withDevice } from './device.ts';
import { ArgumentError } from './errors.ts';
import { type DType, type Handle, native, withSetting } from './native.ts';
import { checkKeys } from './options/call.ts';
import { shown } from './shown.ts';

export type { DType } from './native.ts';

/** The array types that `data()` returns. bf16 and f16 are widened to f32. */
export type TensorData = Float32Array | Float64Array | Int32Array | BigInt64Array | Uint8Array;

/** Numbers nested in arrays, as deep as the tensor has dimensions. */
export type NestedNumbers = number | readonly NestedNumbers[];

/** Shape, type and gradient of a new tensor. */
export interface TensorOptions {
  /** Size of each dimension. Default: that of the nested data, or one dimension for a typed array. */
  shape?: readonly number[];
  /** Element type. Default: that of the typed array, or f32 for plain numbers. */
  dtype?: DType;
  /** Whether backward() collects a gradient for this tensor. Default false. */
  requiresGrad?: boolean;
  /** Name of the device: "cpu", "cuda", "cuda:1". Default: see {@link getDefaultDevice}. */
  device?: string;
}

const kDTypes: readonly string[] = ['f32', 'bf16', 'f16', 'f64', 'i32', 'i64', 'u8'];

/** Bytes of an element, by dtype. */
export const DTYPE_BYTES: Readonly<Record<DType, number>> = {
  ...{ f64: 8, f32: 4, bf16: 2, f16: 2, i64: 8, i32: 4, u8: 1 },
};

const kArrays = {
  f32: Float32Array,
  f64: Float64Array,
  i32: Int32Array,
  i64: BigInt64Array,
  u8: Uint8Array,
};

const registry = new FinalizationRegistry<Handle>((handle) => native.dispose(handle));

/**
 * Lets the garbage collector free a tensor that nobody disposes of. A scope disposes of its tensors itself, so only those that
 * outlive it are watched: a step of decoding makes 600, and watching one takes longer than many an op.
 */
let watch: (tensor: Tensor) => void;

/** The innermost scope's tensors, or null outside any scope. */
let currentScope: Set<Tensor> | null = null;

/**
 * An n-dimensional array (up to 6 dimensions) on a device. Ops on it return at once and run in order on the engine's
 * own thread; reading a value waits for it.
 */
export class Tensor {
  #handle: Handle;
  #shape: readonly number[] | undefined;
  #dtype: DType | undefined;
  #device: string | undefined;
  #encoding: string | undefined;
  #isWatched = false;

  static {
    watch = (tensor) => tensor.#watch();
  }

  /** Wraps a native handle, for lib/ops; users call `tensor()`. */
  constructor(handle: Handle) {
    this.#handle = handle;
    if (currentScope === null) this.#watch();
    else currentScope.add(this);
  }

  #watch(): void {
    if (this.#isWatched) return;
    this.#isWatched = true;
    registry.register(this, this.#handle, this);
  }

  /** The native handle; a disposed tensor's handle is refused by every op with a named error. */
  get handle(): Handle {
    return this.#handle;
  }

  get shape(): readonly number[] {
    this.#shape ??= native.shapeOf(this.#handle);
    return this.#shape;
  }

  get dtype(): DType {
    this.#dtype ??= native.dtypeOf(this.#handle);
    return this.#dtype;
  }

  /** Name of the device: "cpu", "cuda:0". */
  get device(): string {
    this.#device ??= native.deviceOf(this.#handle);
    return this.#device;
  }

  /**
   * Name of the blocks in which the values stand in memory ("NF4", "Q4_1"), null for those that stand there as they are. Blocks are
   * decoded to `dtype` where they are used, which few ops do; `to()` makes a tensor of the values.
   */
  get encoding(): string | null {
    this.#encoding ??= native.encodingOf(this.#handle);
    return this.#encoding === '' ? null : this.#encoding;
  }

  get ndim(): number {
    return this.shape.length;
  }

  /** Number of elements. */
  get size(): number {
    return this.shape.reduce((product, extent) => product * extent, 1);
  }

  /** Whether backward() computes a gradient for this tensor: a leaf that requires one, or a tensor computed from such a leaf. */
  get requiresGrad(): boolean {
    return native.requiresGrad(this.#handle);
  }

  /** Sets whether backward() collects a gradient for this tensor, which must be a leaf. */
  set requiresGrad(value: boolean) {
    native.setRequiresGrad(this.#handle, value);
  }

  /** True for a tensor that no recorded op produced. */
  get isLeaf(): boolean {
    return native.isLeaf(this.#handle);
  }

  /**
   * The gradient that backward() accumulated (f32, or f64 for f64), or null. A new Tensor object at each read. Gradients of
   * several tensors may share memory until a later backward pass adds to them: to write into one, set a copy first.
   */
  get grad(): Tensor | null {
    const handle = native.gradOf(this.#handle);
    return handle === 0 ? null : new Tensor(handle);
  }

  /** Replaces the gradient; later backward passes add in place to the tensor that is given here. null drops it. */
  set grad(value: Tensor | null) {
    native.setGrad(this.#handle, value?.handle ?? null);
  }

  /** Number of times that backward passes have added to the gradient of this leaf. */
  get gradCount(): number {
    return native.gradCountOf(this.#handle);
  }

  /**
   * Adds the gradient with respect to every leaf that this tensor was computed from to that leaf's `grad`. Frees the graph unless
   * `retainGraph` is set.
   * @param grad gradient of the result, in this tensor's shape (v of the vector-Jacobian product). Default for one element: 1
   * @throws ArgumentError if no leaf requires a gradient, or the graph was freed already
   */
  backward(grad?: Tensor | null, options: { retainGraph?: boolean } = {}): void {
    checkKeys('backward', options, 'retainGraph');
    native.backward([this.#handle], [grad?.handle ?? null], options.retainGraph ?? false);
  }

  /** A tensor with the same values that is not on the tape. */
  detach(): Tensor {
    return new Tensor(native.detach(this.#handle));
  }

  /** A number that grows whenever an op writes into the tensor's memory: while it is the same, so are the values. */
  get version(): number {
    return native.versionOf(this.#handle);
  }

  /** Marks the values as constant, so that kernels may keep packed layouts of them. Writing to the tensor is then an error. */
  freeze(): this {
    native.freeze(this.#handle);
    return this;
  }

  /** Resolves to the values in row-major order, once every op before has run. bf16 and f16 arrive as Float32Array. */
  async data(): Promise<TensorData> {
    const { source, array, bytes } = this.#prepareRead();
    try {
      await native.read(source.handle, bytes);
    } finally {
      if (source !== this) source.dispose();
    }
    return array;
  }

  /** Like `data()`, but blocks the event loop until the engine has caught up. */
  dataSync(): TensorData {
    const { source, array, bytes } = this.#prepareRead();
    try {
      native.readSync(source.handle, bytes);
    } finally {
      if (source !== this) source.dispose();
    }
    return array;
  }

  /** The only element of a tensor with one element. */
  async item(): Promise<number> {
    return firstValue(await this.#checkOneElement().data());
  }

  /** Like `item()`, but blocks the event loop. */
  itemSync(): number {
    return firstValue(this.#checkOneElement().dataSync());
  }

  /**
   * A copy of another dtype, or on another device ("cpu", "cuda:1"); the tensor itself when nothing would change. Differentiable:
   * the gradient is converted back to this dtype and device.
   * @throws UnsupportedError for a device that is not known or not available
   */
  to(dtypeOrDevice: DType | (string & {})): Tensor {
    if (kDTypes.includes(dtypeOrDevice)) {
      if (dtypeOrDevice === this.dtype && this.encoding === null) return this;
      return new Tensor(native.cast(this.#handle, dtypeOrDevice as DType));
    }
    if (deviceName(dtypeOrDevice) === this.device) return this;
    return new Tensor(native.toDevice(this.#handle, dtypeOrDevice));
  }

  /** Frees this reference. The memory is freed when no op in flight, view or graph needs it. Idempotent. */
  dispose(): void {
    if (this.#isWatched) registry.unregister(this);
    currentScope?.delete(this);
    native.dispose(this.#handle);
  }

  /** Frees the tensor at the end of a `using` block. */
  [Symbol.dispose](): void {
    this.dispose();
  }

  /** A text with type and shape, without the values. */
  toString(): string {
    return `Tensor(${this.dtype}, [${this.shape.join(', ')}])`;
  }

  #checkOneElement(): Tensor {
    if (this.size !== 1) {
      throw new ArgumentError(
        `item: the tensor must have one element, got ${this.size}; read several with data()`,
      );
    }
    return this;
  }

  #prepareRead(): { source: Tensor; array: TensorData; bytes: Uint8Array } {
    const half = this.dtype === 'bf16' || this.dtype === 'f16';
    const source = half ? unscoped(() => noGrad(() => this.to('f32'))) : this;
    const array = newArray(source.dtype, this.size);
    return { source, array, bytes: new Uint8Array(array.buffer) };
  }
}

function firstValue(data: TensorData): number {
  return Number(data[0]);
}

function newArray(dtype: DType, size: number): TensorData {
  const Type = kArrays[dtype as keyof typeof kArrays];
  if (!Type)
    throw new ArgumentError(`dtype must be one of ${kDTypes.join(', ')}, got ${shown(dtype)}`);
  try {
    return new Type(size);
  } catch {
    throw new ArgumentError(
      `${size} elements are more than a typed array of ${dtype} takes here; read or make the tensor in parts`,
    );
  }
}

function dtypeOfArray(array: ArrayBufferView): DType {
  if (array instanceof Float32Array) return 'f32';
  if (array instanceof Float64Array) return 'f64';
  if (array instanceof Int32Array) return 'i32';
  if (array instanceof BigInt64Array) return 'i64';
  if (array instanceof Uint8Array) return 'u8';
  throw new ArgumentError(
    'tensor: the data must be a Float32Array, Float64Array, Int32Array, BigInt64Array, Uint8Array or numbers',
  );
}

function nestedShape(data: NestedNumbers): number[] {
  const shape: number[] = [];
  for (let level: NestedNumbers | undefined = data; Array.isArray(level); level = level[0]) {
    shape.push(level.length);
  }
  return shape;
}

function raggedData(): ArgumentError {
  return new ArgumentError(
    'tensor: the nested data is ragged; give every array of a level the same length, and numbers at the last',
  );
}

function flatten(data: NestedNumbers, shape: readonly number[], into: number[], depth = 0): void {
  if (depth === shape.length) {
    if (typeof data !== 'number') throw raggedData();
    into.push(data);
    return;
  }
  if (!Array.isArray(data) || data.length !== shape[depth]) throw raggedData();
  for (const part of data) flatten(part, shape, into, depth + 1);
}

/**
 * A tensor with the given values, copied at the call: changing the array afterwards changes nothing.
 * @example const w = tensor([[1, 2], [3, 4]], { requiresGrad: true });
 * @throws ArgumentError for ragged data, or a shape that does not fit it; UnsupportedError for a device as
 *   setDefaultDevice does
 */
export function tensor(data: TensorData | NestedNumbers, options: TensorOptions = {}): Tensor {
  checkKeys('tensor', options, 'shape dtype requiresGrad device');
  const { shape, dtype, requiresGrad = false, device } = options;
  let array: TensorData;
  let extents: readonly number[];
  if (typeof data === 'number' || Array.isArray(data)) {
    const nested = nestedShape(data as NestedNumbers);
    const values: number[] = [];
    flatten(data as NestedNumbers, nested, values);
    const type = dtype ?? 'f32';
    array = newArray(type === 'bf16' || type === 'f16' ? 'f32' : type, values.length);
    if (array instanceof BigInt64Array) array.set(values.map((value) => BigInt(value)));
    else array.set(values);
    extents = shape ?? nested;
  } else {
    array = data as TensorData;
    dtypeOfArray(array);
    extents = shape ?? [array.length];
  }
  const own = dtypeOfArray(array);
  const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  let result = withDevice(device, () => new Tensor(native.fromBytes(bytes, extents, own)));
  if (dtype !== undefined && dtype !== own) {
    const converted = noGrad(() => result.to(dtype));
    result.dispose();
    result = converted;
  }
  if (requiresGrad) result.requiresGrad = true;
  return result;
}

/** Adds the tensors of a scope's result to a set: the result itself, or those nested in arrays and plain objects. */
function collect(value: unknown, into: Set<Tensor>): void {
  if (value instanceof Tensor) into.add(value);
  else if (Array.isArray(value)) for (const part of value) collect(part, into);
  else if (isPlainObject(value)) for (const part of Object.values(value)) collect(part, into);
}

function isPlainObject(value: unknown): value is object {
  if (value === null || typeof value !== 'object') return false;
  const prototype = Object.getPrototypeOf(value);
  return prototype === Object.prototype || prototype === null;
}

/** A copy of a value with each of its tensors replaced: itself, or those nested in arrays and plain objects. */
export function mapTensors<T>(value: T, replace: (tensor: Tensor) => Tensor): T {
  const map = (part: unknown): unknown => {
    if (part instanceof Tensor) return replace(part);
    if (Array.isArray(part)) return part.map(map);
    if (!isPlainObject(part)) return part;
    return Object.fromEntries(Object.entries(part).map(([key, inner]) => [key, map(inner)]));
  };
  return map(value) as T;
}

/**
 * Runs `body` and disposes of every tensor made in it, except those in its result (also nested in arrays and plain objects) and
 * those passed to `keep()`. `body` must be synchronous, since between awaits other code would run in the scope.
 * @throws ArgumentError if the body returns a promise
 */
export function scope<T>(body: () => T): T {
  const outer = currentScope;
  const mine = new Set<Tensor>();
  currentScope = mine;
  const survivors = new Set<Tensor>();
  try {
    const result = body();
    if (result instanceof Promise) {
      throw new ArgumentError('scope: the body must not be async; open scopes between awaits');
    }
    collect(result, survivors);
    return result;
  } finally {
    currentScope = null; // so that dispose() does not search it
    for (const made of mine) {
      if (!survivors.has(made)) made.dispose();
    }
    currentScope = outer;
    for (const kept of survivors) {
      if (!mine.has(kept)) continue;
      if (outer === null) watch(kept);
      else outer.add(kept);
    }
  }
}

/**
 * Runs `body` and adds every tensor made in it to `into`, for the caller to dispose of; keep() removes one again. Of an async
 * function, only the part before the first await counts.
 */
export function collecting<T>(into: Set<Tensor>, body: () => T): T {
  const outer = currentScope;
  currentScope = into;
  try {
    return body();
  } finally {
    currentScope = outer;
    for (const made of into) watch(made);
  }
}

/** Removes a tensor from the scope that would free it (and from the scopes around that). */
export function keep<T extends Tensor>(kept: T): T {
  if (currentScope?.delete(kept)) watch(kept);
  return kept;
}

/** Hands a tensor to the scope that is open, which disposes of it; the opposite of keep(). */
export function adopt<T extends Tensor>(adopted: T): T {
  currentScope?.add(adopted);
  return adopted;
}

/**
 * Runs `body` outside any scope, so that the caller disposes of the tensors made in it. They outlive the work that needed them first, so
 * that they are computed also where that is aborted.
 */
export function unscoped<T>(body: () => T): T {
  return outsideScopes(() => beyondAbort(body));
}

function outsideScopes<T>(body: () => T): T {
  const outer = currentScope;
  currentScope = null;
  try {
    return body();
  } finally {
    currentScope = outer;
  }
}

/** Waits for `work`, which uses these tensors or passes them on, and disposes of them if it fails. */
export async function disposeOnError<T>(
  tensors: Iterable<Tensor>,
  work: () => T | Promise<T>,
): Promise<T> {
  try {
    return await work();
  } catch (error) {
    for (const tensor of tensors) tensor.dispose();
    throw error;
  }
}

/** Runs `body` without recording ops for backward(). */
export function noGrad<T>(body: () => T): T {
  return withGrad(false, body);
}

/**
 * Runs `body` without recording, and disposes of every tensor made in it but those of its result, which belong to the caller, whatever
 * scope is open. `body` must be synchronous.
 */
export function computeOwned<T>(body: () => T): T {
  return outsideScopes(() => scope(() => noGrad(body)));
}

/** Whether ops are recorded for backward(), as they are outside noGrad(). */
export function isRecording(): boolean {
  const before = native.setGradEnabled(true);
  native.setGradEnabled(before);
  return before;
}

/** Runs `body` with recording on, also inside noGrad(). */
export function enableGrad<T>(body: () => T): T {
  return withGrad(true, body);
}

function withGrad<T>(enabled: boolean, body: () => T): T {
  return withSetting(native.setGradEnabled, enabled, body);
}
