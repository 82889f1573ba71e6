/** Base class of the causal language models: hidden states, and a head that is computed separately. */
import { UnsupportedError } from '../errors.ts';
import type { GraphCache } from '../graph_cache.ts';
import type { Linear } from '../nn/index.ts';
import { indexSelect, linear, mul, tanh } from '../ops/index.ts';
import { batchInvariant } from '../runtime.ts';
import { noGrad, scope, type Tensor, tensor, unscoped } from '../tensor.ts';
import {
  addedRows,
  cachedInputs,
  checkTokens,
  type NewTokens,
  recordedStep,
} from './cached_rows.ts';
import type { KvCache } from './kv_cache.ts';
import { Model } from './model.ts';

/** An output head: logits = hidden weight^T, then softcap * tanh(logits / softcap) where softcap is not 0. */
export interface Head {
  readonly weight: Tensor; // (V,C)
  readonly softcap: number;
}

/** A causal language model: hidden states from ids, and a head that is computed separately. */
export abstract class CausalLM extends Model {
  /** The output head; in a tied model its weight is the embedding. */
  abstract get head(): Head;

  /** Length of sequences up to which hidden states do not depend on the other sequences of a batch. */
  get steadyLength(): number {
    return Number.POSITIVE_INFINITY;
  }

  /**
   * The reason why steps of decoding cannot be recorded as graphs; null: they can. They can where `hidden` makes no tensor from
   * values on the host but tables that depend on nothing but the length, rounded up to a power of two of at least 128.
   */
  get graphObstacle(): string | null {
    return `${this.modelType} does not say that its forward can be recorded`;
  }

  get headPaths(): readonly string[] {
    return ['lm_head'];
  }

  get taskType(): 'CAUSAL_LM' {
    return 'CAUSAL_LM';
  }

  /**
   * Hidden states of the last token of each sequence, from new tokens and the keys and values of those before, which the cache
   * holds; those of the new tokens are added. Nothing is recorded for backward. What a sequence gets is the same, bit for bit,
   * whichever sequences are decoded with it, as long as all or none of them are new.
   * @param cache made with `cachedLayers` of this model
   * @param graphs Steps of one token for each sequence are recorded in it, and repeated with other tokens; for a model without
   *   `graphObstacle`. The caller drops the graphs when the model or its adapters change, and keeps no result beyond the next call.
   * @returns (B,C) for B sequences
   * @throws ArgumentError for ids outside the vocabulary, sequences that the cache does not have or that get too long
   */
  forwardCached(
    cache: KvCache,
    tokens: readonly NewTokens[],
    graphs: GraphCache | null = null,
  ): Tensor {
    const checkLength = (length: number): void => this.checkLength(length);
    checkTokens(cache, tokens, { vocabSize: this.vocabSize, checkLength });
    const added = addedRows(tokens);
    const forward = (): Tensor =>
      graphs !== null && this.isRecordable(cache, tokens)
        ? cache.extend({ own: added, recorded: true }, (pass) => {
            const inputs = unscoped(() => cachedInputs(cache, tokens, pass));
            return recordedStep(graphs, inputs, (now) => this.hidden(now));
          })
        : cache.extend({ own: added }, (pass) => this.hidden(cachedInputs(cache, tokens, pass)));
    return this.onDevice(() => noGrad(() => batchInvariant(forward)));
  }

  /** Whether these tokens are a step whose forward can be recorded, and repeated for the next one. */
  private isRecordable(cache: KvCache, tokens: readonly NewTokens[]): boolean {
    if (this.graphObstacle !== null || this.dropsInputs) return false;
    return tokens.every(({ sequence, ids }) => {
      const length = cache.lengthOf(sequence);
      return ids.length === 1 && length > 0 && length < this.steadyLength;
    });
  }

  /**
   * Logits of all rows of a forward's result, or of chosen ones.
   * @param hidden (N,C)
   * @param rows indices into the N rows; all of them if left out
   * @returns (rows,V)
   */
  logits(hidden: Tensor, rows?: Int32Array | readonly number[]): Tensor {
    return headLogits(this.head, hidden, rows);
  }
}

/** Applies a head to all rows of hidden (N,C), or to chosen ones -> (rows,V) */
export function headLogits(
  { weight, softcap }: Head,
  hidden: Tensor,
  rows?: Int32Array | readonly number[],
): Tensor {
  return scope(() => {
    const chosen =
      rows === undefined
        ? hidden
        : indexSelect(hidden, tensor(Int32Array.from(rows), { device: hidden.device }));
    const logits = linear(chosen, weight);
    return softcap > 0 ? mul(tanh(mul(logits, 1 / softcap)), softcap) : logits;
  });
}

/** The head that a linear module is. @throws UnsupportedError while the module has an adapter */
export function linearHead({ weight, adapter }: Linear, softcap = 0): Head {
  if (adapter !== null) {
    throw new UnsupportedError(
      'an adapter on lm_head is not supported, because losses read the head as a matrix; train it whole with modulesToSave',
    );
  }
  return { weight, softcap };
}
