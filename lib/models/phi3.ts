/** Phi-3 and Phi-4-mini: one projection for q, k and v, another for gate and up; the rotary embedding may be partial. */
import { type Linear, Module } from '../nn/index.ts';
import { split } from '../ops/index.ts';
import type { Tensor } from '../tensor.ts';
import { type AttentionConfig, attend, type DecoderInputs, ropeOf } from './attention.ts';
import { positionCount, refuseValues } from './config_keys.ts';
import { attentionOf, type DecoderConfig, type MakeLayer, PreNormLayer } from './decoder.ts';
import {
  flag,
  kWindowKeys,
  number,
  type ReadOptions,
  readDecoder,
  slidingLayers,
} from './decoder_config.ts';
import { decoderFamily } from './family.ts';
import { decoderJson, kDecoderNames } from './gguf.ts';
import { type GatedMlpConfig, gatedActivation } from './mlp.ts';
import type { WeightLoader } from './weights.ts';

class FusedAttention extends Module {
  readonly qkv_proj: Linear;
  readonly o_proj: Linear;
  readonly #config: AttentionConfig;

  constructor(config: AttentionConfig, weights: WeightLoader) {
    super();
    const { hiddenSize: c, headDim: d, numHeads: h, numKeyValueHeads: kv } = config;
    this.qkv_proj = weights.linear('qkv_proj', [(h + 2 * kv) * d, c], false);
    this.o_proj = weights.linear('o_proj', [c, h * d], false);
    this.#config = config;
  }

  /** x (N,C) -> (N,H*D), the input of o_proj */
  forward(x: Tensor, inputs: DecoderInputs): Tensor {
    const { headDim, numHeads, numKeyValueHeads, window, scale, layer } = this.#config;
    const sizes = [numHeads, numKeyValueHeads, numKeyValueHeads].map((heads) => heads * headDim);
    const parts = split(this.qkv_proj.forward(x), sizes, 1) as [Tensor, Tensor, Tensor];
    const options = { window, scale, layer, rope: ropeOf(inputs, this.#config) };
    return attend(parts, this.#config, inputs.rows, options);
  }
}

class FusedMlp extends Module {
  readonly gate_up_proj: Linear;
  readonly down_proj: Linear;
  readonly #config: GatedMlpConfig;

  constructor(config: GatedMlpConfig, weights: WeightLoader) {
    super();
    const { hiddenSize: c, intermediateSize: f } = config;
    this.gate_up_proj = weights.linear('gate_up_proj', [2 * f, c], false);
    this.down_proj = weights.linear('down_proj', [c, f], false);
    this.#config = config;
  }

  /** x (N,C) -> (N,C) */
  forward(x: Tensor): Tensor {
    const { intermediateSize: f, activation } = this.#config;
    const [gate, up] = split(this.gate_up_proj.forward(x), [f, f], 1) as [Tensor, Tensor];
    return this.down_proj.forward(gatedActivation(gate, up, activation));
  }
}

const makeFusedLayer: MakeLayer = (config, weights, i) =>
  new PreNormLayer(config, weights, {
    attention: new FusedAttention(attentionOf(config, i), weights.at('self_attn')),
    mlp: new FusedMlp(config, weights.at('mlp')),
  });

const kKeys = {
  ...kWindowKeys,
  original_max_position_embeddings: positionCount.nullish(),
  embd_pdrop: number,
  resid_pdrop: number,
  attention_bias: flag,
};

function phi3Config(json: Record<string, unknown>, options: ReadOptions): DecoderConfig {
  const { config, keys } = readDecoder(json, options, {
    extra: kKeys,
    defaults: { rmsNormEps: 1e-5, ropeTheta: 10_000, tied: false, maxPositions: 4096 },
    partialRotary: true,
  });
  refuseValues(options.path, {
    embd_pdrop: keys.embd_pdrop || null,
    resid_pdrop: keys.resid_pdrop || null,
    attention_bias: keys.attention_bias || null,
  });
  const layers = slidingLayers(config, {
    layerTypes: keys.layer_types,
    isSliding: () => true,
    window: keys.sliding_window ?? 0,
    path: options.path,
  });
  return { ...config, layers };
}

export const phi3 = decoderFamily({
  modelType: 'phi3',
  architecture: 'Phi3ForCausalLM',
  features: 'Phi-3 and 4 mini: fused projections, partial rotary embedding (no longrope)',
  makeLayer: makeFusedLayer,
  configure: phi3Config,
  gguf: {
    architecture: 'phi3',
    names: {
      ...kDecoderNames,
      block: {
        ...kDecoderNames.block,
        attn_qkv: 'self_attn.qkv_proj',
        ffn_up: 'mlp.gate_up_proj',
      },
    },
    keys: ['attention.sliding_window'],
    configJson: (keys) => ({
      ...decoderJson(keys),
      hidden_act: 'silu',
      sliding_window: keys.number('attention.sliding_window') || null,
    }),
  },
});
