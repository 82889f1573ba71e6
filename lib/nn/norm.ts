/** Normalisation modules. */
import { layerNorm, type RmsNormOptions, rmsNorm, rmsNormAdd } from '../ops/index.ts';
import type { Tensor } from '../tensor.ts';
import { Module } from './module.ts';

/** y = x / sqrt(mean(x^2) + eps) * weight over the last dimension, see `rmsNorm`. */
export class RMSNorm extends Module {
  weight: Tensor; // (C)
  readonly options: Readonly<RmsNormOptions>;

  constructor(weight: Tensor, options: RmsNormOptions = {}) {
    super();
    this.weight = weight;
    this.options = options;
  }

  /** x (...,C) -> (...,C) */
  forward(x: Tensor): Tensor {
    return rmsNorm(x, this.weight, this.options);
  }

  /** [x + residual, its norm] in one pass over memory */
  addForward(x: Tensor, residual: Tensor): [sum: Tensor, y: Tensor] {
    return rmsNormAdd(x, residual, this.weight, this.options);
  }
}

/** y = (x - mean) / sqrt(variance + eps) * weight + bias over the last dimension, see `layerNorm`. */
export class LayerNorm extends Module {
  weight: Tensor; // (C)
  bias: Tensor; // (C)
  readonly eps: number;

  constructor(weight: Tensor, bias: Tensor, { eps = 1e-5 }: { eps?: number } = {}) {
    super();
    this.weight = weight;
    this.bias = bias;
    this.eps = eps;
  }

  /** x (...,C) -> (...,C) */
  forward(x: Tensor): Tensor {
    return layerNorm(x, { weight: this.weight, bias: this.bias, eps: this.eps });
  }
}
