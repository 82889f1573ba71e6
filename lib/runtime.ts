// Settings and statistics of this thread's engines, of which each device has one.
import { deviceInfo, getDefaultDevice } from './device.ts';
import { type Handle, inDebugMode, native, withSetting } from './native.ts';
import { checkKeys } from './options/call.ts';

export { setDebugMode } from './native.ts';

/** Memory of a device in bytes, exact once the work before has run (await `synchronize()` first). */
export interface MemoryStats {
  /** Bytes held by tensors and by work in flight. */
  liveBytes: number;
  /** The largest liveBytes since the start or the last resetPeakMemory(). */
  peakBytes: number;
  /**
   * Bytes kept for reuse, including those that rounding adds to live blocks. Together with liveBytes they are at most about a quarter
   * more than the largest liveBytes so far; {@link trimMemory} gives them back.
   */
  cachedBytes: number;
  /** Bytes of packed layouts of frozen weights, and of adapters' factors that text generation uses again and again. */
  derivedBytes: number;
  /** Number of requests that needed pages of the device; none in the steady state of a training loop. */
  deviceAllocations: number;
  /** Number of tensors that JavaScript holds. */
  liveTensors: number;
  /** liveBytes by the tag in force when the tensor was made (withMemoryTag). */
  byTag: Record<string, number>;
}

/** Cost of one op since the start or the last resetOpTimes(), exact once the work before has run. */
export interface OpTime {
  /** Name of the device: "cpu", "cuda:0". */
  device: string;
  /** Name of the innermost `withPhase` at the call, '' outside any. */
  phase: string;
  op: string;
  /**
   * Which of the op's implementations ran, by its name in `deviceInfo(device).implementations`; '' where it has but one.
   * @since 0.3
   */
  implementation: string;
  calls: number;
  /**
   * Seconds on the engine's thread, without the wait in the queue. For a GPU that is the time of launching, unless {@link
   * setProfiling} is on.
   */
  seconds: number;
}

const modes = { profiling: false, anomaly: false };

/** Whether a mode is on in which the engine waits for each op: debug mode, anomaly mode or profiling. */
export function waitsForEachOp(): boolean {
  return modes.profiling || modes.anomaly || inDebugMode();
}

/**
 * Resolves when everything enqueued so far has run; rejects with the first failure among it.
 * @param device the only device to wait for. Default: all that are in use
 */
export function synchronize(device = ''): Promise<void> {
  return native.synchronize(device);
}

/** Like synchronize(), but blocks the event loop. */
export function synchronizeSync(device = ''): void {
  native.synchronizeSync(device);
}

/**
 * Asks a device for results that are bitwise repeatable. The CPU's and the CUDA plug-in's always are (docs/repeatability.md), so
 * there it changes nothing; a plug-in that would let a sum depend on timing must not while it is set. Returns the mode before.
 */
export function setDeterministic(enabled: boolean): boolean {
  return native.setDeterministic(enabled);
}

/** Lets a GPU round the factors of f32 products to TF32 (10 bits). Default off. Returns the mode before. */
export function setAllowTf32(enabled: boolean): boolean {
  return native.setAllowTf32(enabled);
}

/**
 * Switches profiling on or off. With profiling, {@link opTimes} counts a GPU's kernels by its own clock rather than their launches:
 * marks stand before and behind each op in the device's queue. The time between them includes the launch where the queue had run
 * dry (some microseconds). The CPU's times are the same either way. Returns the mode before.
 */
export function setProfiling(enabled: boolean): boolean {
  modes.profiling = enabled;
  return native.setProfiling(enabled);
}

/**
 * Sets the number of threads that the kernels of this environment use from now on, 1 to 1024. Default: the cores this process may
 * run on.
 */
export function setNumThreads(threads: number): void {
  native.setNumThreads(threads);
}

/** Number of threads that the kernels of this environment use. */
export function getNumThreads(): number {
  return native.numThreads();
}

/** Options of functions for one device, which is the default one unless named. */
export interface OfDevice {
  device?: string;
}

const deviceOf = (where: string, of: OfDevice): string =>
  checkKeys(where, of, 'device').device ?? getDefaultDevice();

/** Memory by the engine's own count; await {@link synchronize} first for exact figures. */
export function memoryStats(of: OfDevice = {}): MemoryStats {
  return native.memoryStats(deviceOf('memoryStats', of)) as MemoryStats;
}

/** Bytes of a device that this process may still use, those that its engine keeps for reuse included; null where it is not known. */
export function availableMemory(
  of: OfDevice = {},
): { device: string; free: number; total: number } | null {
  const { device, freeBytes, totalBytes } = deviceInfo(deviceOf('availableMemory', of));
  if (totalBytes === 0) return null;
  return { device, free: freeBytes + memoryStats({ device }).cachedBytes, total: totalBytes };
}

/** Resets peakBytes to the bytes that are live now. */
export function resetPeakMemory(of: OfDevice = {}): void {
  native.resetPeakMemory(deviceOf('resetPeakMemory', of));
}

/** Gives cached blocks back to the operating system or the device's driver. */
export function trimMemory(of: OfDevice = {}): void {
  native.trimMemory(deviceOf('trimMemory', of));
}

/** Refuses allocations beyond `bytes` of live memory, with an error that gives the sizes. 0: no limit. */
export function setMemoryLimit(bytes: number, of: OfDevice = {}): void {
  native.setMemoryLimit(deviceOf('setMemoryLimit', of), bytes);
}

/**
 * Checks the files whose pages the tensors' values are, where they are some, by their sizes and times of modification: no file is read.
 * @throws NativeError (`ERR_FILE_CHANGED`) where one was written to or shortened since it was opened
 */
export function refuseRewritten(tensors: readonly { readonly handle: Handle }[]): void {
  native.refuseRewritten(tensors.map(({ handle }) => handle));
}

/** Counts the memory of tensors made in `body` under a name of its own in memoryStats().byTag. */
export function withMemoryTag<T>(name: string, body: () => T): T {
  return withSetting(native.setMemoryTag, name, body);
}

/**
 * Runs `body` with products whose rows do not depend on each other: what a linear computes for a row is the same, bit for bit,
 * whichever rows are beside it. Otherwise the order of a sum may depend on the number of rows.
 */
export function batchInvariant<T>(body: () => T): T {
  return withSetting(native.setBatchInvariant, true, body);
}

/** Products with frozen weights that linears compute in int8, and what is kept so, see {@link withInt8Products}. */
export interface Int8Products {
  /** x W^T: the inputs, rotated in blocks of 64 (else 32), with a scale a row, W with one for each output. */
  readonly forward?: boolean;
  /** dy W, the gradient of x: dy with a scale a row. */
  readonly inputGradient?: boolean;
  /** Whether `inputGradient` uses the rotated W of `forward`, so that one copy of it serves both; `forward` implies it. */
  readonly rotated?: boolean;
  /**
   * Whether activations that backward reads are kept in int8, in rows as `forward` has them: the inputs of linears, norms and gated
   * activations, and attention's queries, keys, values and result. Gradients are those of the rounded values.
   */
  readonly savedActivations?: boolean;
}

/** The bits of the engine's setting (`Int8Products` of native/engine/engine.h). */
const kInt8Bits = {
  forward: 1,
  inputGradient: 2,
  rotated: 4,
  savedActivations: 8,
} as const satisfies Record<keyof Int8Products, number>;

/**
 * Runs `body`, in which linears compute these products with frozen weights in int8; their backward passes do as well. An int8 copy of a
 * weight is made at its first use and kept. The CPU computes them on every processor, faster than in other types where it has VNNI or
 * AMX (`deviceInfo('cpu').int8`).
 * @param products undefined: the setting stays as it is
 * @throws UnsupportedError at a linear in f64 or on another device, and where an activation in f64 is to be kept in int8
 */
export function withInt8Products<T>(products: Int8Products | undefined, body: () => T): T {
  if (products === undefined) return body();
  const names = Object.keys(kInt8Bits) as (keyof Int8Products)[];
  const bits = names.reduce((sum, name) => sum + (products[name] ? kInt8Bits[name] : 0), 0);
  return withSetting(native.setInt8Products, bits, body);
}

/** Whether linears compute any product in int8 at the moment. */
export function usesInt8Products(): boolean {
  return (native.int8Products() & ~kInt8Bits.savedActivations) !== 0;
}

/** The largest number of inputs or outputs of a weight whose products linears compute in int8: their sums have 32 bits. */
export function mostInt8Terms(): number {
  return native.int8MostTerms();
}

/** Times of the engine's ops, by phase, op and implementation (await `synchronize()` first). */
export function opTimes(): OpTime[] {
  return native.opTimes() as OpTime[];
}

/** Resets the counts of opTimes(). */
export function resetOpTimes(): void {
  native.resetOpTimes();
}

/** Yields to the event loop, so that timers, I/O and other callbacks of the process can run. */
export function yieldToEventLoop(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

/** Counts the ops that `body` enqueues under this name in opTimes(); the trainer's phases are its step's parts. */
export function withPhase<T>(name: string, body: () => T): T {
  return withSetting(native.setPhase, name, body);
}

/**
 * Switches anomaly mode on or off. In anomaly mode every op checks its results: the first NaN or infinity is an error that names
 * the op and its shapes. Slow; for finding faults. Returns the mode before.
 */
export function setAnomalyMode(enabled: boolean): boolean {
  modes.anomaly = enabled;
  return native.setAnomalyMode(enabled);
}
