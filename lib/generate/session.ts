/**
 * The interface between text generation and the forward of a model. A session holds the state of the sequences that one model
 * decodes: a cache of keys and values, or nothing but their ids. Generation above it knows neither layers nor tensors.
 */
import type { Tensor } from '../tensor.ts';

/**
 * The sequences that a model is decoding, by numbers that the session gives out. Calls come one after the other: a new one is made
 * when the promise of the one before is settled. The rows of logits that a call returns belong to the caller, who may overwrite
 * them. What a call returns for a sequence must not depend on the other sequences of the session, except by rounding.
 *
 * The model's adapters may be switched by other code while a promise is pending. A session therefore enqueues its forwards inside the
 * `run` that it was opened with (see {@link SessionOptions}), the first within the call, before its first await.
 */
export interface DecodeSession {
  /**
   * Starts a sequence for each prompt, of at least one id each. For an encoder-decoder the prompt is the source: the encoder runs
   * once, and the decoder reads its start token.
   * @returns for each prompt the number of its sequence, and the logits (V) that follow the prompt
   */
  prefill(prompts: readonly Int32Array[]): Promise<readonly Prefilled[]>;

  /**
   * Appends one token to each of the given sequences. Sequences that are not named keep their state.
   * @param sequences numbers of live sequences, each at most once, in any order
   * @param tokens the token of each
   * @returns the logits (V) that follow each token, in the order of `sequences`
   */
  step(sequences: readonly number[], tokens: readonly number[]): Promise<readonly Float32Array[]>;

  /**
   * Appends any number of tokens to each of several sequences, which have tokens already. The sequences of an encoder-decoder are
   * its decoder's.
   * @returns the logits (V) that follow the last token of each
   */
  extend(continuations: readonly Continuation[]): Promise<readonly Float32Array[]>;

  /**
   * Makes copies of a sequence, which then go their own ways; what they have in common may be shared.
   * @returns the numbers of the `count` new sequences; the given one stays
   */
  fork(sequence: number, count: number): readonly number[];

  /** Ends a sequence and frees its state; its number is not used again. */
  release(sequence: number): void;

  /**
   * Frees everything; a second call has no effect. It may be called while a promise is pending, which is then settled all the same.
   */
  dispose(): void;
}

/** New tokens of a sequence, at least one. */
export interface Continuation {
  readonly sequence: number;
  readonly ids: Int32Array | readonly number[];
}

/** The result of a prefill for one prompt. */
export interface Prefilled {
  readonly sequence: number;
  readonly logits: Float32Array; // (V)
  /** Number of the prompt's first tokens that the session had computed before. Default 0. */
  readonly cachedTokens?: number;
}

/** Settings of a session. */
export interface SessionOptions {
  /**
   * Runs the synchronous part of a forward under the adapter that the session generates with, without recording it for backward.
   * `model.forward`, `model.head` and any other use of the model's weights happen in it.
   */
  readonly run: <T>(body: () => T) => T;
  /** Largest number of tokens that a sequence can have, prompt included, by which memory may be reserved. */
  readonly maxLength: number;
}

/**
 * Enqueues a forward for each part, each within `run`, and reads their logits. The first is enqueued before anything is awaited, and
 * each other one when the last but one before it has been read: the engine's queue has room for some tens of forwards, and whoever
 * enqueues more waits, deaf to signals.
 * @param forward returns the logits (B,V) of a part
 * @returns the rows of all parts in float32, in their order
 */
export async function logitRows<P>(
  run: SessionOptions['run'],
  parts: readonly P[],
  forward: (part: P) => Tensor,
): Promise<Float32Array[]> {
  const pending: Tensor[] = [];
  const rows: Float32Array[] = [];
  const readFirst = async (): Promise<void> => {
    const [logits] = pending as [Tensor];
    const [count, width] = logits.shape as [number, number];
    const data = await logits.data();
    const all = data instanceof Float32Array ? data : Float32Array.from(data as Float64Array);
    for (let b = 0; b < count; b++) rows.push(all.subarray(b * width, (b + 1) * width));
    pending.shift();
    logits.dispose();
  };
  try {
    for (const part of parts) {
      pending.push(run(() => forward(part)));
      if (pending.length > 1) await readFirst();
    }
    while (pending.length > 0) await readFirst();
    return rows;
  } finally {
    for (const logits of pending) logits.dispose();
  }
}
