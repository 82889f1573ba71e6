/** The two factors of an update B A, and the products computed from them. */
import { matmul, mul, sub } from '../ops/index.ts';
import { scope, type Tensor } from '../tensor.ts';

/** The two factors of an update B A. */
export interface LowRankPair {
  readonly a: Tensor; // (r,in)
  readonly b: Tensor; // (out,r)
}

/** A module's trained pair, the frozen first pair that is subtracted from it (null: none), and the scale s of both. */
export interface ScaledPair {
  readonly pair: LowRankPair;
  readonly frozen: LowRankPair | null;
  readonly scale: number;
}

/** Keys of the pair in a PEFT file, after the module's path. */
export const PAIR_KEYS = { a: 'lora_A.weight', b: 'lora_B.weight' } as const;

/** The pair among a module's tensors by their keys. */
export function pairIn(tensors: ReadonlyMap<string, Tensor>): LowRankPair {
  return { a: tensors.get(PAIR_KEYS.a) as Tensor, b: tensors.get(PAIR_KEYS.b) as Tensor };
}

/** A pair by its keys in a PEFT file. */
export function tensorsOfPair({ a, b }: LowRankPair): Map<string, Tensor> {
  return new Map([
    [PAIR_KEYS.a, a],
    [PAIR_KEYS.b, b],
  ]);
}

/** Keys of the first pair in an adapter's state, after the module's path. */
export const FIRST_KEYS = { a: 'initial_A', b: 'initial_B' } as const;

/** Keys of the pair that a base of the adapter's own was quantised without, where it is not the first one. */
export const LESS_KEYS = { a: 'quantized_A', b: 'quantized_B' } as const;

/** The product B A of a pair, f64. */
export function productOf({ a, b }: LowRankPair): Tensor {
  return matmul(b.to('f64'), a.to('f64'));
}

/** The update s (B A - B0 A0), f64. */
export function deltaOf({ pair, frozen, scale }: ScaledPair): Tensor {
  return scope(() => {
    const product = productOf(pair);
    return mul(frozen === null ? product : sub(product, productOf(frozen)), scale);
  });
}

/** The dtype of trained tensors for a base of this dtype. */
export function masterDType(base: Tensor['dtype']): 'f32' | 'f64' {
  return base === 'f64' ? 'f64' : 'f32';
}
