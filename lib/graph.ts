/**
 * Recorded graphs: the kernels of a function recorded once and launched as one, for steps that repeat with the same shapes. On a
 * GPU the launch then costs next to nothing.
 */
import { withDevice } from './device.ts';
import { native } from './native.ts';
import { scope, unscoped } from './tensor.ts';

/** A recorded graph, made by {@link captureGraph}. */
export class CapturedGraph<T> {
  readonly #graph: unknown;

  /** @param result what the function returned: its tensors take new values with every run */
  constructor(
    graph: unknown,
    readonly result: T,
  ) {
    this.#graph = graph;
  }

  /** Native handle, for captureGraph's `sharing`. */
  get handle(): unknown {
    return this.#graph;
  }

  /**
   * Enqueues a run of every recorded op, on the values that the tensors from outside have then. Tensors that the function wrote,
   * its results among them, count as written.
   */
  replay(): void {
    native.runGraph(this.#graph);
  }

  /** Frees the graph and its memory, once its runs are done; results keep their last values. Idempotent. */
  dispose(): void {
    native.disposeGraph(this.#graph);
  }

  /** Frees the graph at the end of a `using` block. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}

/**
 * Records the ops that `fn` enqueues on a device, and runs them once, as if `fn` had been called. Numbers that `fn` hands
 * to ops (a learning rate, a seed) are recorded as they are. Inside, no value may be read or awaited, and no tensor made of
 * the host's values, read from a file or brought from another device: write inputs into tensors that were made before
 * (`copy_`). Gradients that exist already are added to by every run; those that `fn` makes are written anew. Call `fn` once
 * before, so that kernels are loaded. Recording first waits for the device.
 * @param options device: default see getDefaultDevice. sharing: a graph whose memory this one uses too, so that several take
 *   no more than the largest needs; results of the one are then good until the other runs
 * @example
 * const graph = captureGraph(() => mul(x, 2), { device: 'cuda' });
 * copy_(x, next);
 * graph.replay();
 * await graph.result.data();
 * @throws UnsupportedError where the device has no graphs (the CPU); ArgumentError for what cannot be recorded, and in
 *   debug mode, anomaly mode and while profiling; NativeError when the device cannot record an op
 */
export function captureGraph<T>(
  fn: () => T,
  { device, sharing }: { device?: string; sharing?: CapturedGraph<unknown> | undefined } = {},
): CapturedGraph<T> {
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
