/** The session of a model whose keys and values are kept in a cache. */
import { isAborted } from '../abort.ts';
import { ArgumentError, UnsupportedError } from '../errors.ts';
import { GraphCache } from '../graph_cache.ts';
import { CausalLM, KvCache, type Model, Seq2SeqLM } from '../models/index.ts';
import { ParameterWatch } from '../nn/parameter_watch.ts';
import { batchInvariant } from '../runtime.ts';
import { noGrad, scope, type Tensor } from '../tensor.ts';
import {
  type Continuation,
  type DecodeSession,
  logitRows,
  type Prefilled,
  type SessionOptions,
} from './session.ts';

/** Most tokens of prompts that one forward takes, unless a single prompt is longer: its activations are memory, too. */
const kPrefillRows = 4096;

/**
 * Opens a session that computes each token once and keeps the keys and values of every layer in a cache, which grows with the
 * sequences. What a sequence gets is the same, bit for bit, whichever others the session has.
 * @throws UnsupportedError for a model that does not decode step by step
 */
export function openCachedSession(model: Model, options: SessionOptions): CachedSession {
  if (!(model instanceof CausalLM || model instanceof Seq2SeqLM) || model.cachedLayers === null) {
    throw new UnsupportedError(
      `a ${model.modelType} model of this kind does not generate text; load a causal language model or an encoder-decoder`,
    );
  }
  const { cachedLayers: layers, dtype, device } = model;
  return new CachedSession(model, new KvCache(layers, { dtype, device }), options);
}

/** See {@link openCachedSession}. */
export class CachedSession implements DecodeSession {
  #run: SessionOptions['run'];
  /** Steps of one token for each sequence, recorded, and the tensors that they read; null where the model's cannot be. */
  readonly #recorded: { readonly graphs: GraphCache; readonly watch: ParameterWatch } | null;

  constructor(
    private readonly model: CausalLM | Seq2SeqLM,
    private readonly cache: KvCache,
    options: SessionOptions,
  ) {
    this.#run = options.run;
    const isRecorded = model instanceof CausalLM && model.graphObstacle === null;
    this.#recorded = isRecorded
      ? {
          graphs: new GraphCache(model.device, { whenFull: 'replace' }),
          watch: new ParameterWatch(model),
        }
      : null;
  }

  /** Runs forwards within another function from now on, for another generation. */
  runWithin(run: SessionOptions['run']): void {
    this.#run = run;
  }

  /** Bytes that the cache takes, and those of it that sequences use. */
  get memory(): { readonly bytes: number; readonly usedBytes: number } {
    return { bytes: this.cache.bytes, usedBytes: this.cache.usedBytes };
  }

  /** See {@link DecodeSession.prefill}. Equal prompts are computed once, and share their blocks of the cache. */
  async prefill(prompts: readonly Int32Array[]): Promise<readonly Prefilled[]> {
    const { distinct, indexOf } = distinctPrompts(prompts);
    const made: number[] = [];
    try {
      for (const _ of distinct) made.push(this.cache.create());
      const added = distinct.map((ids, i) => ({ sequence: made[i] as number, ids }));
      const sequences = new Array<number>(prompts.length);
      // Called as soon as a part's forward is enqueued: after an await the cache may have been disposed of.
      const forkEqual = (part: readonly Continuation[]): void => {
        for (const { sequence } of part) {
          const first = made.indexOf(sequence);
          indexOf.forEach((index, i) => {
            if (index !== first) return;
            sequences[i] = indexOf.indexOf(index) === i ? sequence : this.cache.fork(sequence);
            if (sequences[i] !== sequence) made.push(sequences[i] as number);
          });
        }
      };
      const rows = await this.#forwardAll(batches(added), forkEqual);
      return sequences.map((sequence, i) => {
        const [index, row] = [indexOf[i] as number, rows[indexOf[i] as number] as Float32Array];
        return { sequence, logits: indexOf.indexOf(index) === i ? row : row.slice() };
      });
    } catch (error) {
      for (const sequence of made) this.release(sequence);
      throw error;
    }
  }

  async step(
    sequences: readonly number[],
    tokens: readonly number[],
  ): Promise<readonly Float32Array[]> {
    if (sequences.length !== tokens.length) {
      throw new ArgumentError(
        `step: there must be a token for each of the ${sequences.length} sequences, got ${tokens.length}`,
      );
    }
    return this.extend(sequences.map((sequence, i) => ({ sequence, ids: [tokens[i] as number] })));
  }

  async extend(continuations: readonly Continuation[]): Promise<readonly Float32Array[]> {
    const empty = continuations.find(({ sequence }) => this.cache.lengthOf(sequence) === 0);
    if (empty) throw new ArgumentError(`sequence ${empty.sequence} has no prompt yet`);
    return this.#forwardAll(batches(continuations));
  }

  /**
   * Shortens a sequence to its first `length` tokens, at least one.
   * @returns false, with nothing changed, where a layer's window has left keys behind that the next token would see
   */
  truncate(sequence: number, length: number): boolean {
    return this.cache.truncate(sequence, length);
  }

  fork(sequence: number, count: number): readonly number[] {
    return Array.from({ length: count }, () => this.cache.fork(sequence));
  }

  release(sequence: number): void {
    this.cache.release(sequence);
  }

  dispose(): void {
    this.#recorded?.graphs.dispose();
    this.cache.dispose();
  }

  /** The recorded steps, without those of a model that has changed since. */
  #usableGraphs(): GraphCache | null {
    if (this.#recorded === null) return null;
    const { graphs, watch } = this.#recorded;
    if (!watch.isSame()) graphs.dispose();
    return watch.isRecordable ? graphs : null;
  }

  /** Number of tokens of a sequence. */
  lengthOf(sequence: number): number {
    return this.cache.lengthOf(sequence);
  }

  /**
   * Runs forwards, and reads their logits. After an abort the sequences are as before, unless a layer's window has left keys behind.
   * @param onEnqueued called with each part whose forward has been enqueued
   */
  async #forwardAll(
    parts: readonly (readonly Continuation[])[],
    onEnqueued: (part: readonly Continuation[]) => void = () => {},
  ): Promise<readonly Float32Array[]> {
    const before = parts.flat().map(({ sequence }) => {
      return [sequence, this.cache.lengthOf(sequence)] as const;
    });
    try {
      return await logitRows(this.#run, parts, (part) => {
        const logits = this.#forward(part);
        onEnqueued(part);
        return logits;
      });
    } catch (error) {
      if (isAborted(error)) {
        // Tensors that recorded steps read and write were perhaps not written.
        this.#recorded?.graphs.dispose();
        this.cache.undo(before);
      }
      throw error;
    }
  }

  /** Logits (B,V) after the new tokens. */
  #forward(tokens: readonly Continuation[]): Tensor {
    const [model, cache] = [this.model, this.cache];
    const hidden = (): Tensor => {
      if (model instanceof CausalLM)
        return model.forwardCached(cache, tokens, this.#usableGraphs());
      const start = [model.decoderStartTokenId];
      return model.forwardCached(
        cache,
        tokens.map(({ sequence, ids }) =>
          cache.lengthOf(sequence) === 0
            ? { sequence, ids: start, source: ids }
            : { sequence, ids },
        ),
      );
    };
    return scope(() => noGrad(() => batchInvariant(() => model.logits(hidden()))));
  }
}

/** The prompts that differ, in the order in which they come, and for each prompt the index of its equal among them. */
function distinctPrompts(prompts: readonly Int32Array[]): {
  readonly distinct: readonly Int32Array[];
  readonly indexOf: readonly number[];
} {
  const indices = new Map<string, number>();
  const distinct: Int32Array[] = [];
  const indexOf = prompts.map((ids) => {
    const key = ids.join();
    const index = indices.get(key) ?? distinct.push(ids) - 1;
    indices.set(key, index);
    return index;
  });
  return { distinct, indexOf };
}

/** Divides new tokens into forwards of a limited number of rows. */
function batches(prompts: readonly Continuation[]): readonly (readonly Continuation[])[] {
  const parts: Continuation[][] = [];
  let rows = 0;
  for (const prompt of prompts) {
    const last = parts.at(-1);
    if (last !== undefined && rows + prompt.ids.length <= kPrefillRows) {
      last.push(prompt);
      rows += prompt.ids.length;
    } else {
      parts.push([prompt]);
      rows = prompt.ids.length;
    }
  }
  return parts;
}
