/**
 * Base class of the causal language models: hidden states, and a head that is run apart from them.
 */
import { UnsupportedError } from '../errors.ts';
import type { Linear } from '../nn/index.ts';
import { indexSelect, linear, mul, tanh } from '../ops/index.ts';
import { scope, type Tensor, tensor } from '../tensor.ts';
import { Model } from './model.ts';

/** logits = hidden weight^T, then softcap * tanh(logits / softcap) where softcap is not 0. */
export interface Head {
  readonly weight: Tensor; // (V,C)
  readonly softcap: number;
}

/** A causal language model: hidden states from ids, and a head apart from them. */
export abstract class CausalLM extends Model {
  /** The output head; tied models give their embedding. */
  abstract get head(): Head;

  /** Longest sequence up to which its hidden states are the same in every batch. */
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

/** A head on all rows of hidden (N,C), or on chosen ones -> (rows,V) */
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

/** A head that is a linear module. @throws UnsupportedError while an adapter hooks it */
export function linearHead({ weight, adapter }: Linear, softcap = 0): Head {
  if (adapter !== null) {
    throw new UnsupportedError(
      'an adapter on lm_head is not supported: losses read the head as a matrix',
    );
  }
  return { weight, softcap };
}
