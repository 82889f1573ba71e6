/** A session whose logits are a function of the ids, for tests of generation without a model's forward. */
import type { OpenSession } from '../../lib/generate/open_session.ts';
import type { Continuation, DecodeSession, Prefilled } from '../../lib/generate/session.ts';

/** Logits that follow ids. */
export type Script = (ids: readonly number[]) => ArrayLike<number> | Promise<ArrayLike<number>>;

/** The uses of a scripted session, as it notes them. */
export class ScriptedSession implements DecodeSession {
  isDisposed = false;
  steps = 0;
  prefills: number[] = [];
  /** Number of sequences of each call of extend(). */
  extensions: number[] = [];
  /** Largest number of sequences that were live at the same time. */
  mostLive = 0;
  readonly #script: Script;
  readonly #live = new Map<number, number[]>();
  #next = 100;

  constructor(script: Script) {
    this.#script = script;
  }

  async prefill(prompts: readonly Int32Array[]): Promise<readonly Prefilled[]> {
    this.prefills.push(prompts.length);
    const numbers = prompts.map((prompt) => this.#add([...prompt]));
    const rows = await this.#rows(numbers);
    return numbers.map((sequence, i) => ({ sequence, logits: rows[i] as Float32Array }));
  }

  async step(
    sequences: readonly number[],
    tokens: readonly number[],
  ): Promise<readonly Float32Array[]> {
    this.steps++;
    sequences.forEach((sequence, i) => {
      this.#ids(sequence).push(tokens[i] as number);
    });
    return this.#rows(sequences);
  }

  async extend(continuations: readonly Continuation[]): Promise<readonly Float32Array[]> {
    this.extensions.push(continuations.length);
    for (const { sequence, ids } of continuations) this.#ids(sequence).push(...ids);
    return this.#rows(continuations.map(({ sequence }) => sequence));
  }

  fork(sequence: number, count: number): readonly number[] {
    return Array.from({ length: count }, () => this.#add([...this.#ids(sequence)]));
  }

  release(sequence: number): void {
    this.#ids(sequence);
    this.#live.delete(sequence);
  }

  dispose(): void {
    this.isDisposed = true;
  }

  #add(ids: number[]): number {
    this.#live.set(this.#next, ids);
    this.mostLive = Math.max(this.mostLive, this.#live.size);
    return this.#next++;
  }

  #ids(sequence: number): number[] {
    const ids = this.#live.get(sequence);
    if (ids === undefined) throw new Error(`sequence ${sequence} is not live`);
    return ids;
  }

  #rows(sequences: readonly number[]): Promise<Float32Array[]> {
    return Promise.all(
      sequences.map(async (one) => Float32Array.from(await this.#script(this.#ids(one)))),
    );
  }
}

/** A function that opens one scripted session, and the session. */
export function scripted(script: Script): { open: OpenSession; session: ScriptedSession } {
  const session = new ScriptedSession(script);
  return { session, open: () => session };
}

/** Logits of V ids by which one is by far the likeliest. */
export function oneHot(id: number, vocabulary: number): Float32Array {
  const logits = new Float32Array(vocabulary);
  logits[id] = 50;
  return logits;
}
