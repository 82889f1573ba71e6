/** Base class of the causal language models: hidden states, and a head that is computed separately. */
import { UnsupportedError } from '../errors.ts';
import type { Linear } from '../nn/index.ts';
import { indexSelect, linear, mul, tanh } from '../ops/index.ts';
import { scope, type Tensor, tensor } from '../tensor.ts';
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
