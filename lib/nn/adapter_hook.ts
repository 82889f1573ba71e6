/**
 * Interface between a linear module and its adapter, the only thing that nn knows about adapters. A Linear has
 * `adapter: LinearAdapter | null`; a LinearGroup asks each of its members.
 */
import type { LowRank } from '../ops/index.ts';
import type { Tensor } from '../tensor.ts';

/**
 * The update of a linear by its adapter. The linear then computes
 *
 *     y = outputScale * (x W^T + x weightChange^T + low-rank parts) + bias of the linear + bias,
 *
 * where the change of the weight and the low-rank parts read x after dropout. Products are accumulated in f32 and rounded once.
 */
export interface LinearUpdate {
  /** The weight W in the place of the linear's own. Default: the linear's. */
  readonly weight?: Tensor; // (out,in)
  /** The pairs that are added to W, a (R,in) and b (out,R), each with its scale and its frozen start. */
  readonly lowRank: readonly LowRank[];
  /** Added to the output, f32 (f64 beside f64). */
  readonly bias?: Tensor; // (out)
  /** Multiplied into the output before any bias, f32 (f64 beside f64). */
  readonly outputScale?: Tensor; // (out)
  /** Added to the weight: in the weight's dtype, or f32 (f64 beside f64) and then rounded to it. */
  readonly weightChange?: Tensor; // (out,in)
  readonly dropout?: InputDropout;
}

/** Dropout of the input of the low-rank parts. Linears of a group share one mask, that of the first member with an adapter. */
export interface InputDropout {
  readonly p: number;
  /** The mask is a function of both. */
  readonly seed: number;
  readonly stream: number;
}

/** An adapter of a {@link Linear}, which asks it at each forward for the update to add. */
export interface LinearAdapter {
  /** The update for a forward; null: none, since the adapter is switched off. */
  update(): LinearUpdate | null;
  /** Whether update() has a tensor that wants a gradient. Default false. */
  readonly isTrained?: boolean;
  /**
   * A value that is the same for as long as update() returns the same tensors and numbers, so that a recorded forward may be
   * repeated. undefined: each forward needs an update of its own.
   */
  readonly updateKey?: unknown;
  /**
   * Called with the input (...,in) of each forward, before update(). Linears of a group are given the same tensor, one after the other.
   * It must not write to it, and keep() what it wants to have after the forward.
   */
  observe?(x: Tensor): void;
}

/** A trained matrix's place in its pair, for optimisers that read both factors. */
export interface FactorOfPair {
  readonly role: 'a' | 'b';
  readonly a: Tensor; // (r,in)
  readonly b: Tensor; // (out,r)
  /** The scale s of s B A. */
  readonly scale: number;
}
