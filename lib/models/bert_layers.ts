/**
 * The post-norm blocks that BERT, RoBERTa and DeBERTa share; they differ in their self-attention and their embeddings.
 * Dimensions: N rows, C hidden, H heads, D head size, F mlp width.
 */

import { type Linear, LinearGroup, Module } from '../nn/index.ts';
import { attention, reshape } from '../ops/index.ts';
import type { Tensor } from '../tensor.ts';
import type { Activation } from './activations.ts';
import { type Branch, Layer } from './layers.ts';
import { moduleOf } from './module_of.ts';
import type { WeightLoader } from './weights.ts';

export interface BlockConfig {
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly numHeads: number;
  readonly layerNormEps: number;
  readonly activation: Activation;
}

/** The bounds of a batch's segments, for bidirectional attention. */
export interface Segments {
  readonly cuSeqlens: Tensor; // (B+1) i32
  readonly lengths: Tensor | null; // (B) i32
}

export interface SelfAttention<S> extends Module {
  /** x (N,C) -> (N,C), before the output projection */
  forward(x: Tensor, shared: S): Tensor;
}

/** Attention of every row to all rows of its segment: q, k, v (N,C) each -> (N,C). */
export function attendBothWays(
  qkv: readonly Tensor[],
  numHeads: number,
  segments: Segments,
): Tensor {
  const [n, c] = (qkv[0] as Tensor).shape as [number, number];
  const heads = qkv.map((y) => reshape(y, [n, numHeads, c / numHeads]));
  const [q, k, v] = heads as [Tensor, Tensor, Tensor];
  return reshape(attention(q, k, v, { ...segments, causal: false }), [n, c]);
}

export class BertSelfAttention extends Module implements SelfAttention<Segments> {
  readonly query: Linear;
  readonly key: Linear;
  readonly value: Linear;
  readonly #qkv: LinearGroup;
  readonly #numHeads: number;

  constructor({ hiddenSize: c, numHeads }: BlockConfig, weights: WeightLoader) {
    super();
    this.query = weights.linear('query', [c, c], true);
    this.key = weights.linear('key', [c, c], true);
    this.value = weights.linear('value', [c, c], true);
    this.#qkv = new LinearGroup([this.query, this.key, this.value]);
    this.#numHeads = numHeads;
  }

  forward(x: Tensor, segments: Segments): Tensor {
    return attendBothWays(this.#qkv.forward(x), this.#numHeads, segments);
  }
}

/** A projection and the norm of its sum with the residual. */
function outputOf(inner: number, { hiddenSize: c, layerNormEps }: BlockConfig, at: WeightLoader) {
  return moduleOf({
    dense: at.linear('dense', [c, inner], true),
    LayerNorm: at.layerNorm('LayerNorm', c, layerNormEps),
  });
}

type Output = ReturnType<typeof outputOf>;

export class BertLayer<S> extends Layer<S> {
  readonly attention: Module & { readonly self: SelfAttention<S>; readonly output: Output };
  readonly intermediate: Module & { readonly dense: Linear };
  readonly output: Output;
  readonly #activation: Activation;

  /** @param self the attention, built from weights.at('attention.self') */
  constructor(self: SelfAttention<S>, config: BlockConfig, weights: WeightLoader) {
    super();
    const { hiddenSize: c, intermediateSize: f } = config;
    const output = outputOf(c, config, weights.at('attention.output'));
    this.attention = moduleOf({ self, output });
    this.intermediate = moduleOf({ dense: weights.linear('intermediate.dense', [f, c], true) });
    this.output = outputOf(f, config, weights.at('output'));
    this.#activation = config.activation;
  }

  branches(): readonly Branch<S>[] {
    const { attention, intermediate, output } = this;
    return [
      {
        postNorm: attention.output.LayerNorm,
        attention: (x, shared) => attention.self.forward(x, shared),
        forward: (attended) => attention.output.dense.forward(attended),
      },
      {
        postNorm: output.LayerNorm,
        forward: (x) => output.dense.forward(this.#activation(intermediate.dense.forward(x))),
      },
    ];
  }
}
