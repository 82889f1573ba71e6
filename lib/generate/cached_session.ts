/** The session of a model whose keys and values are kept in a cache. */
import { ArgumentError, UnsupportedError } from '../errors.ts';
import { CausalLM, KvCache, type Model, Seq2SeqLM } from '../models/index.ts';
import { batchInvariant } from '../runtime.ts';
import { noGrad, scope, type Tensor } from '../tensor.ts';
import { type DecodeSession, logitRows, type Prefilled, type SessionOptions } from './session.ts';

/** Most tokens of prompts that one forward takes, unless a single prompt is longer: its activations are memory, too. */
const kPrefillRows = 4096;

/** New tokens of a sequence of a session. */
export interface Continuation {
  readonly sequence: number;
  readonly ids: Int32Array | readonly number[];
}

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
  readonly #model: CausalLM | Seq2SeqLM;
  readonly #cache: KvCache;
  readonly #options: SessionOptions;

  constructor(model: CausalLM | Seq2SeqLM, cache: KvCache, options: SessionOptions) {
    this.#model = model;
    this.#cache = cache;
    this.#options = options;
  }

  /** Bytes that the cache takes, and those of it that sequences use. */
  get memory(): { readonly bytes: number; readonly usedBytes: number } {
    return { bytes: this.#cache.bytes, usedBytes: this.#cache.usedBytes };
  }

  async prefill(prompts: readonly Int32Array[]): Promise<readonly Prefilled[]> {
    const added: { sequence: number; ids: Int32Array }[] = [];
    try {
      for (const ids of prompts) added.push({ sequence: this.#cache.create(), ids });
      const logits = this.#forwardAll(batches(added));
      return (await logits).map((row, i) => ({
        sequence: (added[i] as Continuation).sequence,
        logits: row,
      }));
    } catch (error) {
      for (const { sequence } of added) this.release(sequence);
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

  /**
   * Appends any number of tokens to each of several sequences, which have tokens already.
   * @returns the logits (V) that follow the last token of each
   */
  async extend(continuations: readonly Continuation[]): Promise<readonly Float32Array[]> {
    const empty = continuations.find(({ sequence }) => this.#cache.lengthOf(sequence) === 0);
    if (empty) throw new ArgumentError(`sequence ${empty.sequence} has no prompt yet`);
    return this.#forwardAll([continuations]);
  }

  /**
   * Shortens a sequence to its first `length` tokens, at least one.
   * @returns false, with nothing changed, where a layer's window has left keys behind that the next token would see
   */
  truncate(sequence: number, length: number): boolean {
    return this.#cache.truncate(sequence, length);
  }

  fork(sequence: number, count: number): readonly number[] {
    return Array.from({ length: count }, () => this.#cache.fork(sequence));
  }

  release(sequence: number): void {
    this.#cache.release(sequence);
  }

  dispose(): void {
    this.#cache.dispose();
  }

  /** Enqueues forwards within the call, and reads their logits. */
  async #forwardAll(parts: readonly (readonly Continuation[])[]): Promise<readonly Float32Array[]> {
    return logitRows(this.#options.run, parts, (part) => this.#forward(part));
  }

  /** Logits (B,V) after the new tokens. */
  #forward(tokens: readonly Continuation[]): Tensor {
    const [model, cache] = [this.#model, this.#cache];
    const hidden = (): Tensor => {
      if (model instanceof CausalLM) return model.forwardCached(cache, tokens);
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

/** Divides prompts into forwards of a limited number of rows. */
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
