/**
 * A sequence that several generations continue, as the turns of a conversation do: what a prompt has in common with the tokens of
 * the generations before is not computed again.
 */
import { isAborted } from '../abort.ts';
import { ArgumentError } from '../errors.ts';
import type { CausalLM } from '../models/index.ts';
import { type CachedSession, openCachedSession } from './cached_session.ts';
import type { OpenSession } from './open_session.ts';
import type { Continuation, Prefilled, SessionOptions } from './session.ts';

/**
 * A cache of one sequence, and the ids that it holds. Generations use it one after the other, through {@link ContinuedSession.open};
 * all of them must run the model with the same weights.
 */
export class ContinuedSession {
  #session: CachedSession | null = null;
  /** The sequence in the session; null: none yet. */
  #sequence: number | null = null;
  #ids: number[] = [];

  constructor(private readonly model: CausalLM) {}

  /** Number of tokens whose keys and values are kept. */
  get length(): number {
    return this.#ids.length;
  }

  /** Bytes of the cache. */
  get bytes(): number {
    return this.#session?.memory.bytes ?? 0;
  }

  /** Opens the session of a generation, which leaves the sequence behind when it ends. */
  readonly open: OpenSession = (_, options) => {
    this.#session ??= openCachedSession(this.model, options);
    this.#session.runWithin(options.run);
    return {
      prefill: async ([prompt, ...others]) => {
        if (prompt === undefined || others.length > 0) throw onlyOne();
        return [await this.#prefill(prompt, options)];
      },
      step: async (_, tokens) => [await this.#extend(tokens.slice(0, 1))],
      extend: async ([continuation]) => [await this.#extend((continuation as Continuation).ids)],
      fork: (_, count) => {
        if (count > 0) throw onlyOne();
        return [];
      },
      // The sequence outlives the generation.
      release: () => {},
      dispose: () => {},
    };
  };

  /** Forgets all tokens and frees the cache. The next generation begins anew. */
  reset(): void {
    this.#session?.dispose();
    this.#session = null;
    this.#sequence = null;
    this.#ids = [];
  }

  async #prefill(prompt: Int32Array, options: SessionOptions): Promise<Prefilled> {
    this.#session ??= openCachedSession(this.model, options);
    const session = this.#session;
    const kept = this.#keep(commonPrefix(this.#ids, prompt));
    return this.#orReset(async () => {
      if (kept === 0) {
        const [started] = await session.prefill([prompt]);
        this.#sequence = (started as Prefilled).sequence;
        this.#ids = Array.from(prompt);
        return started as Prefilled;
      }
      const logits = await this.#extend(prompt.subarray(kept));
      return { sequence: this.#sequence as number, logits, cachedTokens: kept };
    });
  }

  async #extend(ids: Int32Array | readonly number[]): Promise<Float32Array> {
    return this.#orReset(async () => {
      const continuation = { sequence: this.#sequence as number, ids };
      const [logits] = await (this.#session as CachedSession).extend([continuation]);
      for (const id of ids) this.#ids.push(id);
      return logits as Float32Array;
    });
  }

  /** Shortens the sequence to its first `length` tokens where that is possible, else ends it. @returns its length */
  #keep(length: number): number {
    if (this.#sequence === null) return 0;
    const session = this.#session as CachedSession;
    if (length > 0 && session.truncate(this.#sequence, length)) {
      this.#ids.length = length;
      return length;
    }
    session.release(this.#sequence);
    this.#sequence = null;
    this.#ids = [];
    return 0;
  }

  /**
   * Runs a forward. After one that was aborted the sequence is as before, where that is possible; after one that fails it is unknown what
   * the cache holds, so that nothing of it is used again.
   */
  async #orReset<T>(forward: () => Promise<T>): Promise<T> {
    try {
      return await forward();
    } catch (error) {
      if (!isAborted(error) || !this.#isWhole()) this.reset();
      throw error;
    }
  }

  /** Whether the sequence in the session holds the ids that it is said to hold. */
  #isWhole(): boolean {
    if (this.#session === null || this.#sequence === null) return false;
    return this.#session.lengthOf(this.#sequence) === this.#ids.length;
  }
}

function onlyOne(): ArgumentError {
  return new ArgumentError('a conversation is continued by one sequence at a time');
}

/** The number of tokens that the ids and the prompt begin with, less than the whole prompt: its last token gives the logits. */
function commonPrefix(ids: readonly number[], prompt: Int32Array): number {
  const most = Math.min(ids.length, prompt.length - 1);
  let length = 0;
  while (length < most && ids[length] === prompt[length]) length++;
  return length;
}
