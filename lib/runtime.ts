// Settings and statistics of the engines (one a device) in this thread's environment.
import { getDefaultDevice } from './device.ts';
import { inDebugMode, native, withSetting } from './native.ts';

export { setDebugMode } from './native.ts';

/** Bytes on the device, exact once the work before has run (await `synchronize()` first). */
export interface MemoryStats {
  /** Held by tensors and by work in flight. */
  liveBytes: number;
  /** The largest liveBytes since the start or the last resetPeakMemory(). */
  peakBytes: number;
  /** Freed and kept for reuse, with what rounding adds to live blocks; at most about a quarter of the largest liveBytes. */
  cachedBytes: number;
  /** Packed layouts of frozen weights. */
  derivedBytes: number;
  /** Requests that needed pages of the device; none in the steady state of a training loop. */
  deviceAllocations: number;
  /** Tensors that JS holds. */
  liveTensors: number;
  /** liveBytes by the tag in force when the tensor was made (withMemoryTag). */
  byTag: Record<string, number>;
}

/** What one op has cost since the start or the last resetOpTimes(), exact once the work before has run. */
export interface OpTime {
  /** "cpu", "cuda:0" */
  device: string;
  /** The innermost `withPhase` at the call, '' outside any. */
  phase: string;
  op: string;
  calls: number;
  /**
   * On the engine's thread, waiting for the queue not counted. Of a GPU that is the time of launching, unless
   * {@link setProfiling} is on.
   */
  seconds: number;
}

const modes = { profiling: false, anomaly: false };

/** Whether a mode is on in which every op is looked at by itself: debug mode, anomaly mode or profiling. */
export function waitsForEachOp(): boolean {
  return modes.profiling || modes.anomaly || inDebugMode();
}

/**
 * Resolves when everything enqueued so far has run; rejects with the first failure among it.
 * @param device this one alone. Default: all that are in use
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
 * {@link opTimes} then counts a GPU's kernels by its own clock rather than their launches: marks stand before and behind each
 * op in the device's queue. Between them is also the launch where the queue had run dry (some microseconds). The CPU's
 * times are the same either way. Returns the mode before.
 */
export function setProfiling(enabled: boolean): boolean {
  modes.profiling = enabled;
  return native.setProfiling(enabled);
}

/** Threads the kernels of this environment use from now on, 1 to 1024. Default: the cores this process may run on. */
export function setNumThreads(threads: number): void {
  native.setNumThreads(threads);
}

/** Threads that the kernels of this environment use. */
export function getNumThreads(): number {
  return native.numThreads();
}

/** Of one device, the default one unless named. */
export interface OfDevice {
  device?: string;
}

const named = ({ device }: OfDevice): string => device ?? getDefaultDevice();

/** Memory by the engine's own count; await {@link synchronize} first for exact figures. */
export function memoryStats(of: OfDevice = {}): MemoryStats {
  return native.memoryStats(named(of)) as MemoryStats;
}

/** Makes peakBytes start again from what is live now. */
export function resetPeakMemory(of: OfDevice = {}): void {
  native.resetPeakMemory(named(of));
}

/** Gives cached blocks back to the operating system or the device's driver. */
export function trimMemory(of: OfDevice = {}): void {
  native.trimMemory(named(of));
}

/** Refuses allocations beyond `bytes` of live memory, with an error that gives the sizes. 0: no limit. */
export function setMemoryLimit(bytes: number, of: OfDevice = {}): void {
  native.setMemoryLimit(named(of), bytes);
}

/** Counts the memory of tensors made in `body` under a name of its own in memoryStats().byTag. */
export function withMemoryTag<T>(name: string, body: () => T): T {
  return withSetting(native.setMemoryTag, name, body);
}

/** Where the engine's time went, by phase and op (await `synchronize()` first). */
export function opTimes(): OpTime[] {
  return native.opTimes() as OpTime[];
}

/** Starts the counts of opTimes() afresh. */
export function resetOpTimes(): void {
  native.resetOpTimes();
}

/** Counts the ops that `body` enqueues under this name in opTimes(); the trainer's phases are its step's parts. */
export function withPhase<T>(name: string, body: () => T): T {
  return withSetting(native.setPhase, name, body);
}

/**
 * In anomaly mode every op checks what it made: the first NaN or infinity is an error that names the op and its
 * shapes. Slow; for finding faults. Returns the mode before.
 */
export function setAnomalyMode(enabled: boolean): boolean {
  modes.anomaly = enabled;
  return native.setAnomalyMode(enabled);
}
