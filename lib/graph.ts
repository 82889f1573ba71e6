/**
 * Recorded graphs: the kernels of a function, recorded once and launched together, for steps that repeat with the same shapes. The
 * launch then costs next to nothing: on a GPU that of one kernel, on the CPU that of one op.
 */
import { withDevice } from './device.ts';
import { native } from './native.ts';
import { checkKeys } from './options/call.ts';
import { scope, type Tensor, unscoped } from './tensor.ts';

/** Tensors by name; a null stands for an absent tensor. */
export type NamedTensors = Readonly<Record<string, Tensor | null>>;

/** A recorded graph, made by {@link captureGraph}. */
export class CapturedGraph<T> {
  /** @param result the result of the function, whose tensors get new values with every run */
  constructor(
    private readonly graph: unknown,
    readonly result: T,
  ) {}

  /** Native handle, for captureGraph's `sharing`. */
  get handle(): unknown {
    return this.graph;
  }

  /**
   * Enqueues a run of every recorded op on the current values of the tensors that the function read. The tensors that it wrote, its
   * results among them, count as overwritten.
   */
  replay(): void {
    native.runGraph(this.graph);
  }

  /** Frees the graph and its memory, once its runs are done; results keep their last values. Idempotent. */
  dispose(): void {
    native.disposeGraph(this.graph);
  }

  /** Frees the graph at the end of a `using` block. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}

/**
 * Records the ops that `fn` enqueues on a device, and runs them once, as if `fn` had been called. Numbers that `fn` passes to ops (a
 * learning rate, a seed) are recorded as constants. In `fn`, no value may be read or awaited, and no tensor may be made from values
 * in JavaScript, read from a file or copied from another device: make input tensors before, and write new values into them with
 * `copy_`. Every run adds to gradients that existed before the recording, and overwrites those that `fn` made. Call `fn` once
 * before, so that kernels are loaded. Recording first waits for the device.
 * @param options device: default see getDefaultDevice. sharing: a graph whose memory this one uses, too, so that several take no
 *   more than the largest; the results of each are then valid until another one runs
 * @example
 * const graph = captureGraph(() => mul(x, 2), { device: 'cuda' });
 * copy_(x, next);
 * graph.replay();
 * await graph.result.data();
 * @throws UnsupportedError where the device has no graphs; ArgumentError for what cannot be recorded, and in
 *   debug mode, anomaly mode and while profiling; NativeError when the device cannot record an op
 */
export function captureGraph<T>(
  fn: () => T,
  options: { device?: string; sharing?: CapturedGraph<unknown> | undefined } = {},
): CapturedGraph<T> {
  const { device, sharing } = checkKeys('captureGraph', options, 'device sharing');
  return withDevice(device, () => {
    const graph = native.beginGraph(sharing?.handle ?? null);
    let result: T;
    try {
      result = unscoped(() => scope(fn));
    } catch (error) {
      native.abandonGraph(graph);
      throw error;
    }
    native.endGraph(graph);
    native.runGraph(graph);
    return new CapturedGraph(graph, result);
  });
}
