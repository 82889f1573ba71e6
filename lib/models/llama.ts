/**
 * The llama architecture: pre-norm blocks of rotary attention (grouped queries) and a gated mlp. Attributes are named as
 * in the checkpoint. Dimensions: N rows, C hidden, H heads, Hkv key/value heads, D head size, F mlp width, V vocabulary.
 */

import { checkpoint } from '../autograd.ts';
import { UnsupportedError } from '../errors.ts';
import { Embedding, Linear, LinearGroup, Module, RMSNorm } from '../nn/index.ts';
import { add, attention, type RopeTables, reshape, rope, swiglu } from '../ops/index.ts';
import type { Tensor } from '../tensor.ts';
import { CausalLM, type Head } from './causal_lm.ts';
import { type LlamaConfig, llamaConfigJson } from './llama_config.ts';
import type { ModelInputs, ModelOrigin } from './model.ts';
import { RopeCache } from './rope.ts';
import type { WeightLoader } from './weights.ts';

/** What all layers read besides their rows. */
interface Shared {
  readonly inputs: ModelInputs;
  readonly tables: RopeTables;
}

class LlamaAttention extends Module {
  readonly q_proj: Linear;
  readonly k_proj: Linear;
  readonly v_proj: Linear;
  readonly o_proj: Linear;
  readonly #qkv: LinearGroup;
  readonly #config: LlamaConfig;

  constructor(config: LlamaConfig, weights: WeightLoader) {
    super();
    const { hiddenSize: c, headDim: d, numHeads, numKeyValueHeads, qkvBias, outputBias } = config;
    this.q_proj = weights.linear('q_proj', [numHeads * d, c], qkvBias);
    this.k_proj = weights.linear('k_proj', [numKeyValueHeads * d, c], qkvBias);
    this.v_proj = weights.linear('v_proj', [numKeyValueHeads * d, c], qkvBias);
    this.o_proj = weights.linear('o_proj', [c, numHeads * d], outputBias);
    this.#qkv = new LinearGroup([this.q_proj, this.k_proj, this.v_proj]);
    this.#config = config;
  }

  /** x (N,C) -> (N,C) */
  forward(x: Tensor, { inputs, tables }: Shared): Tensor {
    const { headDim: d, numHeads, numKeyValueHeads } = this.#config;
    const n = x.shape[0] as number;
    const [q, k, v] = this.#qkv.forward(x) as [Tensor, Tensor, Tensor];
    const attended = attention(
      rope(reshape(q, [n, numHeads, d]), tables, inputs.positions),
      rope(reshape(k, [n, numKeyValueHeads, d]), tables, inputs.positions),
      reshape(v, [n, numKeyValueHeads, d]),
      { cuSeqlens: inputs.cuSeqlens, lengths: inputs.lengths },
    );
    return this.o_proj.forward(reshape(attended, [n, numHeads * d]));
  }
}

class LlamaMlp extends Module {
  readonly gate_proj: Linear;
  readonly up_proj: Linear;
  readonly down_proj: Linear;
  readonly #gateUp: LinearGroup;

  constructor({ hiddenSize: c, intermediateSize: f, mlpBias }: LlamaConfig, weights: WeightLoader) {
    super();
    this.gate_proj = weights.linear('gate_proj', [f, c], mlpBias);
    this.up_proj = weights.linear('up_proj', [f, c], mlpBias);
    this.down_proj = weights.linear('down_proj', [c, f], mlpBias);
    this.#gateUp = new LinearGroup([this.gate_proj, this.up_proj]);
  }

  /** x (N,C) -> (N,C) */
  forward(x: Tensor): Tensor {
    const [gate, up] = this.#gateUp.forward(x) as [Tensor, Tensor];
    return this.down_proj.forward(swiglu(gate, up));
  }
}

class LlamaLayer extends Module {
  readonly input_layernorm: RMSNorm;
  readonly self_attn: LlamaAttention;
  readonly post_attention_layernorm: RMSNorm;
  readonly mlp: LlamaMlp;

  constructor(config: LlamaConfig, weights: WeightLoader) {
    super();
    this.input_layernorm = norm(config, weights.at('input_layernorm'));
    this.self_attn = new LlamaAttention(config, weights.at('self_attn'));
    this.post_attention_layernorm = norm(config, weights.at('post_attention_layernorm'));
    this.mlp = new LlamaMlp(config, weights.at('mlp'));
  }

  /** x (N,C), a residual sum -> the next one */
  forward(x: Tensor, shared: Shared): Tensor {
    const attended = this.self_attn.forward(this.input_layernorm.forward(x), shared);
    const [sum, normed] = this.post_attention_layernorm.addForward(attended, x);
    return add(this.mlp.forward(normed), sum);
  }
}

class LlamaModel extends Module {
  readonly embed_tokens: Embedding;
  readonly layers: readonly LlamaLayer[];
  readonly norm: RMSNorm;
  readonly #rope: RopeCache;

  constructor(config: LlamaConfig, weights: WeightLoader) {
    super();
    this.embed_tokens = new Embedding(
      weights.tensor('embed_tokens.weight', [config.vocabSize, config.hiddenSize]),
    );
    this.layers = Array.from(
      { length: config.numLayers },
      (_, i) => new LlamaLayer(config, weights.at(`layers.${i}`)),
    );
    this.norm = norm(config, weights.at('norm'));
    this.#rope = new RopeCache(config.rope, weights.dtype === 'f64' ? 'f64' : 'f32');
  }

  forward(inputs: ModelInputs, gradientCheckpointing: boolean): Tensor {
    const shared = { inputs, tables: this.#rope.tables(inputs.length) };
    const stream = this.embed_tokens.forward(inputs.ids); // (N,C)
    return gradientCheckpointing ? this.#checkpointed(stream, shared) : this.#fused(stream, shared);
  }

  /** Every residual sum is taken together with the norm that follows it. */
  #fused(embedded: Tensor, shared: Shared): Tensor {
    let stream = embedded;
    let x = (this.layers[0] as LlamaLayer).input_layernorm.forward(stream);
    for (const [i, layer] of this.layers.entries()) {
      const attended = layer.self_attn.forward(x, shared);
      [stream, x] = layer.post_attention_layernorm.addForward(attended, stream);
      const next = this.layers[i + 1]?.input_layernorm ?? this.norm;
      [stream, x] = next.addForward(layer.mlp.forward(x), stream);
    }
    return x;
  }

  /** The same blocks, each a segment from sum to sum. */
  #checkpointed(embedded: Tensor, { inputs, tables }: Shared): Tensor {
    const { positions, cuSeqlens, lengths } = inputs;
    const { cos, sin } = tables;
    let stream = embedded;
    for (const layer of this.layers) {
      // What the segment reads must outlive this call, so all of it goes through its inputs.
      const segment = (x: Tensor, ...rest: Tensor[]): Tensor => {
        const [c, s, p, cu, len = null] = rest as [Tensor, Tensor, Tensor, Tensor, Tensor?];
        const own = { ...inputs, positions: p, cuSeqlens: cu, lengths: len };
        return layer.forward(x, { inputs: own, tables: { cos: c, sin: s } });
      };
      const given = [
        stream,
        cos,
        sin,
        positions,
        cuSeqlens,
        ...(lengths === null ? [] : [lengths]),
      ];
      // A segment none of whose inputs wants a gradient would not be recorded, and adapters in it would get none: the
      // first block of a frozen model runs as usual.
      stream = stream.requiresGrad
        ? checkpoint(segment, given)
        : segment(...(given as [Tensor, ...Tensor[]]));
    }
    return this.norm.forward(stream);
  }

  override dispose(): void {
    super.dispose();
    this.#rope.dispose();
  }
}

/** A model of the LLaMA family. */
export class LlamaForCausalLM extends CausalLM {
  readonly modelType = 'llama';
  readonly config: LlamaConfig;
  readonly model: LlamaModel;
  readonly lm_head: Linear;

  constructor(config: LlamaConfig, weights: WeightLoader, origin: ModelOrigin) {
    super(origin);
    this.config = config;
    this.model = new LlamaModel(config, weights.at('model'));
    this.lm_head = config.tied
      ? new Linear(this.model.embed_tokens.weight)
      : weights.linear('lm_head', [config.vocabSize, config.hiddenSize], false);
  }

  get vocabSize(): number {
    return this.config.vocabSize;
  }

  get head(): Head {
    if (this.lm_head.adapter !== null) {
      throw new UnsupportedError(
        'an adapter on lm_head is not supported: losses read the head as a matrix',
      );
    }
    return { weight: this.lm_head.weight, softcap: 0 };
  }

  configJson(): Record<string, unknown> {
    return llamaConfigJson(this.config, this.dtypeName);
  }

  protected hidden(inputs: ModelInputs): Tensor {
    return this.model.forward(inputs, this.gradientCheckpointing);
  }

  override dispose(): void {
    super.dispose();
    this.model.dispose();
  }
}

function norm(config: LlamaConfig, weights: WeightLoader): RMSNorm {
  const weight = weights.tensor('weight', [config.hiddenSize]);
  return new RMSNorm(weight, { eps: config.rmsNormEps, castBeforeWeight: true });
}
