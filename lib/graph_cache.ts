/**
 * A cache of graphs for functions of tensors that run many times. The first run of a key is an ordinary one (it loads kernels
 * and fills caches), the second is recorded as a graph, and from the third run on the graph is launched. Inputs are copied into
 * tensors that the graph keeps. All graphs of a cache share one memory pool, which is as large as the largest of them needs.
 */
import { sharesProcessMemory } from './device.ts';
import { type CapturedGraph, captureGraph, type NamedTensors } from './graph.ts';
import { copy_ } from './ops/index.ts';
import { trimMemory, waitsForEachOp } from './runtime.ts';
import { noGrad, scope, type Tensor, unscoped } from './tensor.ts';

/** The results of running a function. */
export interface GraphRun<T> {
  /** The resulting tensors, valid until release() and until the next run of any graph of the cache. */
  readonly results: T;
  /** Whether the results belong to a graph, which overwrites them when it runs again. */
  readonly isGraph: boolean;
  release(): void;
}

interface Entry {
  readonly graph: CapturedGraph<NamedTensors>;
  readonly inputs: NamedTensors;
}

/** The largest number of graphs in a cache. */
const kMaxGraphs = 16;
/** The largest number of keys that are remembered after their first run. */
const kMaxKeys = 4096;

export class GraphCache {
  readonly #whenFull: 'run' | 'replace';
  readonly #seenKeys = new Set<string>();
  readonly #entries = new Map<string, Entry>();

  /**
   * @param options whenFull: what happens to another key than those of the largest number of graphs. 'run': it runs without a graph.
   *   'replace': its graph replaces the one that was not run for the longest time. Default 'run'
   */
  constructor(
    private readonly device: string,
    { whenFull = 'run' }: { whenFull?: 'run' | 'replace' } = {},
  ) {
    this.#whenFull = whenFull;
  }

  /** The number of graphs in the cache. */
  get size(): number {
    return this.#entries.size;
  }

  /** Whether the cache has a graph for a key, which the next run will launch. */
  has(key: string): boolean {
    return this.#entries.has(key);
  }

  /**
   * Computes body(inputs), as an ordinary run, while recording it, or by launching its graph. Takes ownership of the inputs.
   * @param key a text that covers everything the ops enqueued by `body` depend on, see shapesOf
   */
  run<T extends NamedTensors>(
    key: string,
    inputs: NamedTensors,
    body: (inputs: NamedTensors) => T,
  ): GraphRun<T> {
    // Debug mode, anomaly mode and profiling must see each op, so these run without graphs and free the graphs' memory.
    if (waitsForEachOp()) {
      this.dispose();
      return runOpByOp(inputs, body);
    }
    const entry = this.#entries.get(key);
    if (entry !== undefined) {
      this.#entries.delete(key); // the one that was run last comes last
      this.#entries.set(key, entry);
      replay(entry, inputs);
      return { results: entry.graph.result as T, isGraph: true, release: () => {} };
    }
    if (!this.#seenKeys.has(key)) {
      if (this.#seenKeys.size < kMaxKeys) this.#seenKeys.add(key);
      return runOpByOp(inputs, body);
    }
    if (this.#entries.size >= kMaxGraphs) {
      if (this.#whenFull === 'run') return runOpByOp(inputs, body);
      const [oldest, replaced] = [...this.#entries][0] as [string, Entry];
      this.#entries.delete(oldest);
      disposeEntry(replaced);
    }
    return { results: this.#capture(key, inputs, body), isGraph: true, release: () => {} };
  }

  /** Frees all graphs. */
  dispose(): void {
    for (const entry of this.#entries.values()) disposeEntry(entry);
    this.#entries.clear();
  }

  #capture<T extends NamedTensors>(
    key: string,
    inputs: NamedTensors,
    body: (inputs: NamedTensors) => T,
  ): T {
    const sharing = [...this.#entries.values()][0]?.graph;
    try {
      // The memory that ordinary runs of this shape left in a GPU's allocator may be needed for the graph.
      if (!sharesProcessMemory(this.device)) trimMemory({ device: this.device });
      const graph = captureGraph(() => body(inputs), { device: this.device, sharing });
      this.#entries.set(key, { graph, inputs });
      return graph.result;
    } catch (error) {
      disposeAll(inputs);
      throw error;
    }
  }
}

function disposeEntry({ graph, inputs }: Entry): void {
  graph.dispose();
  disposeAll(graph.result);
  disposeAll(inputs);
}

function runOpByOp<T extends NamedTensors>(
  inputs: NamedTensors,
  body: (inputs: NamedTensors) => T,
): GraphRun<T> {
  try {
    const results = unscoped(() => scope(() => body(inputs)));
    return { results, isGraph: false, release: () => disposeAll(results) };
  } finally {
    disposeAll(inputs);
  }
}

function replay({ graph, inputs }: Entry, given: NamedTensors): void {
  noGrad(() => {
    for (const [name, value] of Object.entries(given)) {
      if (value !== null) copy_(inputs[name] as Tensor, value);
    }
  });
  disposeAll(given);
  graph.replay();
}

/** The names, dtypes and shapes of tensors as a text, for use in keys. */
export function shapesOf(inputs: NamedTensors): string {
  return Object.entries(inputs)
    .map(([name, value]) => `${name}:${value === null ? '' : `${value.dtype}[${value.shape}]`}`)
    .join(' ');
}

function disposeAll(tensors: NamedTensors): void {
  for (const value of Object.values(tensors)) value?.dispose();
}
