/** The gated mlp that most decoders share. */
import { type Linear, LinearGroup, Module } from '../nn/index.ts';
import { geglu, swiglu } from '../ops/index.ts';
import type { Tensor } from '../tensor.ts';
import type { WeightLoader } from './weights.ts';

export type GatedActivation = 'silu' | 'gelu' | 'gelu_tanh';

/** act(gate) * up, see `swiglu` and `geglu`. */
export function gatedActivation(gate: Tensor, up: Tensor, activation: GatedActivation): Tensor {
  if (activation === 'silu') return swiglu(gate, up);
  return geglu(gate, up, { approximate: activation === 'gelu_tanh' ? 'tanh' : 'none' });
}

export interface GatedMlpConfig {
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly mlpBias: boolean;
  readonly activation: GatedActivation;
}

/** down(act(gate(x)) * up(x)), gate and up as one product. */
export class GatedMlp extends Module {
  readonly gate_proj: Linear;
  readonly up_proj: Linear;
  readonly down_proj: Linear;
  readonly #gateUp: LinearGroup;
  readonly #activation: GatedActivation;

  constructor(config: GatedMlpConfig, weights: WeightLoader) {
    super();
    const { hiddenSize: c, intermediateSize: f, mlpBias, activation } = config;
    this.gate_proj = weights.linear('gate_proj', [f, c], mlpBias);
    this.up_proj = weights.linear('up_proj', [f, c], mlpBias);
    this.down_proj = weights.linear('down_proj', [c, f], mlpBias);
    this.#gateUp = new LinearGroup([this.gate_proj, this.up_proj]);
    this.#activation = activation;
  }

  /** x (N,C) -> (N,C) */
  forward(x: Tensor): Tensor {
    const [gate, up] = this.#gateUp.forward(x) as [Tensor, Tensor];
    return this.down_proj.forward(gatedActivation(gate, up, this.#activation));
  }
}
