/**
 * Functions of tensors that are run again and again, as graphs: the first run of a key is an ordinary one (it loads kernels
 * and fills caches), the second is recorded, from the third on the recording is launched. Inputs are copied into tensors
 * that stay. All graphs of a cache share one memory, so that it is as large as the largest needs.
 */
import { type CapturedGraph, captureGraph } from '../graph.ts';
import { copy_ } from '../ops/index.ts';
import { trimMemory, waitsForEachOp } from '../runtime.ts';
import type { Named } from '../tasks/task.ts';
import { noGrad, scope, type Tensor, unscoped } from '../tensor.ts';

/** What a run made. */
export interface Run<T> {
  /** Good until release(), and until the next run of any graph of the cache. */
  readonly results: T;
  release(): void;
}

interface Entry {
  readonly graph: CapturedGraph<Named>;
  readonly inputs: Named;
}

/** Graphs that a cache holds; shapes that come later run without. */
const kMostGraphs = 16;
/** Keys that are remembered as met once. */
const kMostKeys = 4096;

export class GraphCache {
  readonly #device: string;
  readonly #met = new Set<string>();
  readonly #entries = new Map<string, Entry>();

  constructor(device: string) {
    this.#device = device;
  }

  /** Graphs that are held. */
  get size(): number {
    return this.#entries.size;
  }

  /** Whether the next run of a key launches a graph. */
  holds(key: string): boolean {
    return this.#entries.has(key);
  }

  /**
   * body(inputs), by whichever way. Takes the inputs over.
   * @param key all that the ops which `body` enqueues depend on, see shapesOf
   */
  run<T extends Named>(key: string, inputs: Named, body: (inputs: Named) => T): Run<T> {
    // Debug mode, anomaly mode and profiling want to see each op; their memory is not to stand beside the graphs'.
    if (waitsForEachOp()) {
      this.dispose();
      return plain(inputs, body);
    }
    const entry = this.#entries.get(key);
    if (entry !== undefined) {
      replay(entry, inputs);
      return { results: entry.graph.result as T, release: () => {} };
    }
    if (!this.#met.has(key)) {
      if (this.#met.size < kMostKeys) this.#met.add(key);
      return plain(inputs, body);
    }
    if (this.#entries.size >= kMostGraphs) return plain(inputs, body);
    return { results: this.#capture(key, inputs, body), release: () => {} };
  }

  /** Drops the graphs. */
  dispose(): void {
    for (const { graph, inputs } of this.#entries.values()) {
      graph.dispose();
      disposeAll(graph.result);
      disposeAll(inputs);
    }
    this.#entries.clear();
  }

  #capture<T extends Named>(key: string, inputs: Named, body: (inputs: Named) => T): T {
    const sharing = [...this.#entries.values()][0]?.graph;
    try {
      // What ordinary runs of this shape needed may be what the graph needs now.
      trimMemory({ device: this.#device });
      const graph = captureGraph(() => body(inputs), { device: this.#device, sharing });
      this.#entries.set(key, { graph, inputs });
      return graph.result;
    } catch (error) {
      disposeAll(inputs);
      throw error;
    }
  }
}

function plain<T extends Named>(inputs: Named, body: (inputs: Named) => T): Run<T> {
  try {
    const results = unscoped(() => scope(() => body(inputs)));
    return { results, release: () => disposeAll(results) };
  } finally {
    disposeAll(inputs);
  }
}

function replay({ graph, inputs }: Entry, given: Named): void {
  noGrad(() => {
    for (const [name, value] of Object.entries(given)) {
      if (value !== null) copy_(inputs[name] as Tensor, value);
    }
  });
  disposeAll(given);
  graph.replay();
}

/** Names, types and shapes, for keys. */
export function shapesOf(inputs: Named): string {
  return Object.entries(inputs)
    .map(([name, value]) => `${name}:${value === null ? '' : `${value.dtype}[${value.shape}]`}`)
    .join(' ');
}

function disposeAll(tensors: Named): void {
  for (const value of Object.values(tensors)) value?.dispose();
}
