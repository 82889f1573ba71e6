/**
 * OLMo 2: norms after attention and mlp, before the residual sums, and over the whole of q and k. They multiply by their weight
 * before they round, unlike Llama's.
 */
import type { RMSNorm } from '../nn/index.ts';
import { type DecoderInputs, SelfAttention } from './attention.ts';
import { attentionOf, type DecoderConfig } from './decoder.ts';
import { flag, type ReadOptions, readDecoder } from './decoder_config.ts';
import { decoderFamily } from './family.ts';
import { decoderJson, kDecoderNames } from './gguf.ts';
import { type Branch, Layer } from './layers.ts';
import { GatedMlp } from './mlp.ts';
import type { WeightLoader } from './weights.ts';

class PostNormLayer extends Layer<DecoderInputs> {
  readonly self_attn: SelfAttention;
  readonly post_attention_layernorm: RMSNorm;
  readonly mlp: GatedMlp;
  readonly post_feedforward_layernorm: RMSNorm;
  readonly #branches: readonly Branch<DecoderInputs>[];

  constructor(config: DecoderConfig, weights: WeightLoader, i: number) {
    super();
    const { hiddenSize, norm } = config;
    this.self_attn = new SelfAttention(attentionOf(config, i), weights.at('self_attn'));
    this.post_attention_layernorm = weights.rmsNorm('post_attention_layernorm', hiddenSize, norm);
    this.mlp = new GatedMlp(config, weights.at('mlp'));
    this.post_feedforward_layernorm = weights.rmsNorm(
      'post_feedforward_layernorm',
      hiddenSize,
      norm,
    );
    this.#branches = [
      {
        preNorm: null,
        postNorm: null,
        attention: (x, inputs) => this.self_attn.forward(x, inputs),
        forward: (attended) =>
          this.post_attention_layernorm.forward(this.self_attn.o_proj.forward(attended)),
      },
      {
        preNorm: null,
        postNorm: null,
        attention: null,
        forward: (x) => this.post_feedforward_layernorm.forward(this.mlp.forward(x)),
      },
    ];
  }

  branches(): readonly Branch<DecoderInputs>[] {
    return this.#branches;
  }
}

function olmo2Config(json: Record<string, unknown>, options: ReadOptions): DecoderConfig {
  const { config, keys } = readDecoder(json, options, {
    extra: { attention_bias: flag },
    defaults: { rmsNormEps: 1e-5, ropeTheta: 10_000, tied: false, maxPositions: 2048 },
  });
  const bias = keys.attention_bias ?? false;
  return {
    ...config,
    norm: { ...config.norm, castBeforeWeight: false },
    qkNorm: 'whole',
    qkvBias: bias,
    outputBias: bias,
  };
}

export const olmo2 = decoderFamily({
  modelType: 'olmo2',
  architecture: 'Olmo2ForCausalLM',
  features: 'norms after attention and mlp; norms of q and k over all heads',
  makeLayer: (config, weights, i) => new PostNormLayer(config, weights, i),
  configure: olmo2Config,
  gguf: {
    architecture: 'olmo2',
    names: {
      ...kDecoderNames,
      block: {
        ...kDecoderNames.block,
        post_attention_norm: 'post_attention_layernorm',
        post_ffw_norm: 'post_feedforward_layernorm',
      },
    },
    keys: [],
    ignoredTensors: [],
    configJson: (keys) => ({ ...decoderJson(keys), hidden_act: 'silu' }),
    stored: () => ({}),
  },
});
