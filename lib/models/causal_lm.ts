/** Base class of the causal language models: hidden states, and a head that is computed separately. */
import { UnsupportedError } from '../errors.ts';
import type { Linear } from '../nn/index.ts';
import { indexSelect, linear, mul, tanh } from '../ops/index.ts';
import { batchInvariant } from '../runtime.ts';
import { noGrad, scope, type Tensor, tensor } from '../tensor.ts';
import { addedRows, cachedInputs, checkTokens, type NewTokens } from './cached_rows.ts';
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
   * @returns (B,C) for B sequences
   * @throws ArgumentError for ids outside the vocabulary, sequences that the cache does not have or that get too long
   */
  forwardCached(cache: KvCache, tokens: readonly NewTokens[]): Tensor {
    const checkLength = (length: number): void => this.checkLength(length);
    checkTokens(cache, tokens, { vocabSize: this.vocabSize, checkLength });
    const forward = (): Tensor =>
      cache.extend({ own: addedRows(tokens) }, (pass) =>
        this.hidden(cachedInputs(cache, tokens, pass)),
      );
    return this.onDevice(() => noGrad(() => batchInvariant(forward)));
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
