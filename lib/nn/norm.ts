/** Normalisation modules. */
import { add, layerNorm, type RmsNormOptions, rmsNorm, rmsNormAdd } from '../ops/index.ts';
import { checkKeys } from '../options/call.ts';
import type { Tensor } from '../tensor.ts';
import { Module } from './module.ts';

/** A module that normalises rows, alone or together with the residual sum before it. */
export abstract class Norm extends Module {
  /** x (...,C) -> (...,C) */
  abstract forward(x: Tensor): Tensor;

  /** Computes x + residual and the norm of that sum. */
  abstract addForward(x: Tensor, residual: Tensor): [sum: Tensor, y: Tensor];
}

/** RMSNorm over the last dimension, y = x / sqrt(mean(x^2) + eps) * weight; see `rmsNorm`. */
export class RMSNorm extends Norm {
  weight: Tensor; // (C)
  readonly options: Readonly<RmsNormOptions>;

  constructor(weight: Tensor, options: RmsNormOptions = {}) {
    super();
    checkKeys('RMSNorm', options, 'eps weightOffset castBeforeWeight');
    this.weight = weight;
    this.options = options;
  }

  forward(x: Tensor): Tensor {
    return rmsNorm(x, this.weight, this.options);
  }

  /** Computes both in one pass over memory. */
  addForward(x: Tensor, residual: Tensor): [sum: Tensor, y: Tensor] {
    return rmsNormAdd(x, residual, this.weight, this.options);
  }
}

/** LayerNorm over the last dimension, y = (x - mean) / sqrt(variance + eps) * weight + bias; see `layerNorm`. */
export class LayerNorm extends Norm {
  weight: Tensor; // (C)
  bias: Tensor; // (C)
  readonly eps: number;

  constructor(weight: Tensor, bias: Tensor, options: { eps?: number } = {}) {
    super();
    checkKeys('LayerNorm', options, 'eps');
    this.weight = weight;
    this.bias = bias;
    this.eps = options.eps ?? 1e-5;
  }

  forward(x: Tensor): Tensor {
    return layerNorm(x, { weight: this.weight, bias: this.bias, eps: this.eps });
  }

  addForward(x: Tensor, residual: Tensor): [sum: Tensor, y: Tensor] {
    const sum = add(x, residual);
    return [sum, this.forward(sum)];
  }
}
