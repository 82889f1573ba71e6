/**
 * A session without a cache: every step computes all tokens of a sequence again. It needs nothing but the model's forward, and is what
 * sessions with a cache are compared with.
 */
import { CausalLM, type ModelBatch, type Seq2SeqBatch, Seq2SeqLM } from '../models/index.ts';
import { scope, type Tensor } from '../tensor.ts';
import type { Continuation, DecodeSession, Prefilled, SessionOptions } from './session.ts';

/** The ids of one sequence. */
interface Ids {
  /** The encoder's; null: there is no encoder. */
  readonly source: Int32Array | null;
  /** The ids that the logits depend on, the decoder's start token included. */
  readonly own: number[];
}

/** Opens an {@link UncachedSession}. */
export function openUncachedSession(
  model: CausalLM | Seq2SeqLM,
  options: Pick<SessionOptions, 'run'>,
): DecodeSession {
  return new UncachedSession(model, options);
}

/** A session that computes all tokens of its sequences again at each step. */
export class UncachedSession implements DecodeSession {
  readonly #live = new Map<number, Ids>();
  #next = 0;

  constructor(
    private readonly model: CausalLM | Seq2SeqLM,
    private readonly options: Pick<SessionOptions, 'run'>,
  ) {}

  async prefill(prompts: readonly Int32Array[]): Promise<readonly Prefilled[]> {
    const { model } = this;
    const sequences = prompts.map((prompt) =>
      this.#add(
        model instanceof Seq2SeqLM
          ? { source: prompt, own: [model.decoderStartTokenId] }
          : { source: null, own: [...prompt] },
      ),
    );
    const rows = await this.#logits(sequences);
    return sequences.map((sequence, i) => ({ sequence, logits: rows[i] as Float32Array }));
  }

  async step(
    sequences: readonly number[],
    tokens: readonly number[],
  ): Promise<readonly Float32Array[]> {
    return this.extend(sequences.map((sequence, i) => ({ sequence, ids: [tokens[i] as number] })));
  }

  async extend(continuations: readonly Continuation[]): Promise<readonly Float32Array[]> {
    for (const { sequence, ids } of continuations) this.#ids(sequence).own.push(...ids);
    return this.#logits(continuations.map(({ sequence }) => sequence));
  }

  fork(sequence: number, count: number): readonly number[] {
    const { source, own } = this.#ids(sequence);
    return Array.from({ length: count }, () => this.#add({ source, own: [...own] }));
  }

  release(sequence: number): void {
    this.#live.delete(sequence);
  }

  dispose(): void {
    this.#live.clear();
  }

  #add(ids: Ids): number {
    this.#live.set(this.#next, ids);
    return this.#next++;
  }

  #ids(sequence: number): Ids {
    return this.#live.get(sequence) as Ids;
  }

  async #logits(sequences: readonly number[]): Promise<Float32Array[]> {
    const all = sequences.map((sequence) => this.#ids(sequence));
    const passes = this.#passes(all);
    // All passes are enqueued before the first is awaited: afterwards another adapter may be active.
    const made = passes.map((pass) => this.options.run(() => lastLogits(this.model, pass)));
    try {
      const rows: Float32Array[] = [];
      for (const logits of made)
        rows.push(
          ...rowsOf(
            (await logits.data()) as Float32Array | Float64Array,
            logits.shape[1] as number,
          ),
        );
      return rows;
    } finally {
      for (const logits of made) logits.dispose();
    }
  }

  /** Divides sequences into passes: one for all, unless their rows depend on the longest sequence of the pass. */
  #passes(all: readonly Ids[]): (readonly Ids[])[] {
    const { model } = this;
    const steady = model instanceof CausalLM ? model.steadyLength : Number.POSITIVE_INFINITY;
    return all.some(({ own }) => own.length > steady) ? all.map((one) => [one]) : [all];
  }
}

/** The logits (B,V) that follow each sequence. */
function lastLogits(model: CausalLM | Seq2SeqLM, sequences: readonly Ids[]): Tensor {
  return scope(() => {
    const own = batchOf(sequences.map((one) => one.own));
    const rows = own.cuSeqlens.subarray(1).map((end) => end - 1);
    if (model instanceof CausalLM) return model.logits(model.forward(own, { rows }));
    const sources = batchOf(sequences.map(({ source }) => source as Int32Array));
    const batch: Seq2SeqBatch = { ...sources, decoder: own };
    return model.logits(model.forward(batch, { rows }));
  });
}

/** A batch with a segment for each list of ids. */
function batchOf(lists: readonly ArrayLike<number>[]): ModelBatch {
  const cuSeqlens = new Int32Array(lists.length + 1);
  lists.forEach((ids, b) => {
    cuSeqlens[b + 1] = (cuSeqlens[b] as number) + ids.length;
  });
  const total = cuSeqlens[lists.length] as number;
  const [inputIds, positions] = [new Int32Array(total), new Int32Array(total)];
  lists.forEach((ids, b) => {
    const begin = cuSeqlens[b] as number;
    inputIds.set(ids, begin);
    for (let t = 0; t < ids.length; t++) positions[begin + t] = t;
  });
  return { inputIds, positions, cuSeqlens };
}

/** The rows of logits (B,V) in float32. */
function rowsOf(data: Float32Array | Float64Array, width: number): Float32Array[] {
  const all = data instanceof Float32Array ? data : Float32Array.from(data);
  return Array.from({ length: all.length / width }, (_, b) =>
    all.subarray(b * width, (b + 1) * width),
  );
}
