/** New rows of sequences of a cache, as the inputs of a forward. */
import { ArgumentError } from '../errors.ts';
import type { NamedTensors } from '../graph.ts';
import { type GraphCache, shapesOf } from '../graph_cache.ts';
import { adopt, type Tensor, tensor } from '../tensor.ts';
import { type AddedRows, bounds, type CachePass, type KvCache } from './kv_cache.ts';
import type { CachedRows, ModelInputs } from './model.ts';

/** New tokens of a sequence, at least one. */
export interface NewTokens {
  /** The number of the sequence in its cache. */
  readonly sequence: number;
  readonly ids: Int32Array | readonly number[];
}

/** Limits of a model that new tokens are checked by. */
export interface TokenLimits {
  readonly vocabSize: number;
  /** Checks the length of a sequence. @throws ArgumentError for one that is too long */
  readonly checkLength: (tokens: number) => void;
}

/** The numbers of rows that these tokens add to their sequences. */
export function addedRows(tokens: readonly NewTokens[]): AddedRows {
  return {
    sequences: tokens.map(({ sequence }) => sequence),
    counts: tokens.map(({ ids }) => ids.length),
  };
}

/**
 * Checks tokens against a model and the lengths of their sequences.
 * @throws ArgumentError for no tokens, ids outside the vocabulary, or a sequence that would be longer than the position table
 */
export function checkTokens(
  cache: KvCache,
  tokens: readonly NewTokens[],
  { vocabSize, checkLength }: TokenLimits,
): void {
  if (tokens.length === 0) throw new ArgumentError('no sequence was given to decode');
  for (const { sequence, ids } of tokens) {
    if (ids.length === 0) throw new ArgumentError(`sequence ${sequence} must get at least one id`);
    ids.forEach((id, i) => {
      if (Number.isInteger(id) && id >= 0 && id < vocabSize) return;
      throw new ArgumentError(
        `ids[${i}] of sequence ${sequence} must be 0 to ${vocabSize - 1}, got ${id}`,
      );
    });
    checkLength(cache.lengthOf(sequence) + ids.length);
  }
}

/**
 * Computes, records or repeats the forward of a step, of one token for each sequence.
 * @param inputs of the step, with tensors that no scope owns; the graph takes them over
 * @returns (B,C), valid until the next step where the step is or was recorded
 */
export function recordedStep(
  graphs: GraphCache,
  inputs: ModelInputs,
  forward: (inputs: ModelInputs) => Tensor,
): Tensor {
  const { cached, ids, positions, cuSeqlens, length } = inputs;
  const { pass } = cached as CachedRows;
  const own = { ids, positions, cuSeqlens };
  const given: NamedTensors = { ...own, ...pass.tensors() };
  // Tables of positions are made anew where they become too short, by powers of two.
  const tableRows = 2 ** Math.ceil(Math.log2(Math.max(length, 128)));
  const key = `${shapesOf(given)} chunks:${pass.chunkCounts} rows:${tableRows}`;
  const run = graphs.run(key, given, (now) => {
    const { ids, positions, cuSeqlens } = now as typeof own;
    const step = { ...(cached as CachedRows), pass: pass.over(now) };
    return { hidden: forward({ ...inputs, ids, positions, cuSeqlens, cached: step }) };
  });
  return run.isGraph ? run.results.hidden : adopt(run.results.hidden);
}

/** The inputs of a forward of the new tokens, whose last row of each sequence is wanted. Call it within `KvCache.extend`. */
export function cachedInputs(
  cache: KvCache,
  tokens: readonly NewTokens[],
  pass: CachePass,
): ModelInputs {
  const { counts } = addedRows(tokens);
  const cuRows = bounds(counts);
  const rows = cuRows[tokens.length] as number;
  const inputIds = new Int32Array(rows);
  const positions = new Int32Array(rows);
  const lengths = new Int32Array(rows);
  tokens.forEach(({ sequence, ids }, b) => {
    const [first, before] = [cuRows[b] as number, cache.lengthOf(sequence)];
    inputIds.set(ids, first);
    for (let i = 0; i < ids.length; i++) positions[first + i] = before + i;
    lengths.fill(before + ids.length, first, first + ids.length);
  });
  const last = Int32Array.from(tokens, (_, b) => (cuRows[b + 1] as number) - 1);
  return {
    ids: tensor(inputIds),
    positions: tensor(positions),
    cuSeqlens: tensor(cuRows),
    lengths: null,
    tokenTypes: null,
    rowOf: null,
    cuOwn: null,
    wanted: rows === tokens.length ? null : tensor(last),
    length: lengths.reduce((most, length) => Math.max(most, length), 0),
    cached: { pass, positions, lengths },
  };
}
