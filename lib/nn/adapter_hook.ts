/**
 * What a linear module asks of whoever hooks it: the only thing that nn knows about adapters. A Linear has
 * `adapter: LinearAdapter | null`; a LinearGroup asks each of its members.
 */
import type { Tensor } from '../tensor.ts';

/** y = x W^T + scale * ((x a^T) b^T - (x frozen.a^T) frozen.b^T), accumulated in f32 and rounded once. */
export interface LowRankUpdate {
  readonly a: Tensor; // (R,in), f32 master or the activations' dtype
  readonly b: Tensor; // (out,R)
  readonly scale: number;
  /** The adapter's first values, never trained: what W itself already holds of the pair (PiSSA). */
  readonly frozen?: { readonly a: Tensor; readonly b: Tensor }; // (R0,in), (out,R0)
}

/** What hooks a {@link Linear}: asked at each forward for the update to add. */
export interface LinearAdapter {
  /** Asked at every forward; null adds nothing (the adapter is switched off). */
  update(): LowRankUpdate | null;
}
