/** The embedding module. */
import { embedding } from '../ops/index.ts';
import type { Tensor } from '../tensor.ts';
import { Module } from './module.ts';

/** An embedding: a table of vectors (V,C), of which ids (N) select rows (N,C). */
export class Embedding extends Module {
  weight: Tensor; // (V,C)

  constructor(weight: Tensor) {
    super();
    this.weight = weight;
  }

  /** ids (N) i32 -> (N,C) */
  forward(ids: Tensor): Tensor {
    return embedding(this.weight, ids);
  }
}
