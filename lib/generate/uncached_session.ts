/**
 * A session without a cache: every step computes all tokens of a sequence again. It needs nothing but the model's forward, and is what
 * sessions with a cache are compared with.
 */
import { batchOf } from '../models/batch.ts';
import { CausalLM, type Seq2SeqBatch, Seq2SeqLM } from '../models/index.ts';
import { partEnds } from '../models/parts.ts';
import { scope, type Tensor } from '../tensor.ts';
import {
  type Continuation,
  type DecodeSession,
  logitRows,
  type Prefilled,
  type SessionOptions,
} from './session.ts';

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
    for (const { sequence, ids } of continuations) {
      const { own } = this.#ids(sequence);
      for (const id of ids) own.push(id);
    }
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
    return logitRows(this.options.run, this.#passes(all), (pass) => lastLogits(this.model, pass));
  }

  /** Divides sequences into passes, of one each where their rows depend on the longest sequence of the pass. */
  #passes(all: readonly Ids[]): (readonly Ids[])[] {
    const { model } = this;
    const steady = model instanceof CausalLM ? model.steadyLength : Number.POSITIVE_INFINITY;
    if (all.some(({ own }) => own.length > steady)) return all.map((one) => [one]);
    const ends = partEnds(all.map(({ source, own }) => own.length + (source?.length ?? 0)));
    return ends.map((end, i) => all.slice(ends[i - 1] ?? 0, end));
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
