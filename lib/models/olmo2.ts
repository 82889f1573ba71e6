/**
 * OLMo 2: norms after attention and mlp, before the residual sums, and over the whole of q and k. They multiply by their weight
 * before they round, unlike Llama's.
 */
import { type DecoderConfig, makePostNormLayer } from './decoder.ts';
import { flag, type ReadOptions, readDecoder } from './decoder_config.ts';
import { decoderFamily } from './family.ts';
import { decoderJson, kDecoderNames } from './gguf.ts';

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
  makeLayer: makePostNormLayer,
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
    configJson: (keys) => ({ ...decoderJson(keys), hidden_act: 'silu' }),
  },
});
